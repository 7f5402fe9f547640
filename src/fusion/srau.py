"""VisualGPT's self-resurrecting activation unit (SRAU): each block chooses between words and picture (slot A).

Chen, Guo, Yi, Li, Elhoseiny 2022, "VisualGPT: Data-efficient Adaptation of Pretrained Language Models for Image
Captioning", CVPR, arXiv 2102.10407, section 3.2. With a = x + SelfAttention(LN1 x) and elementwise products:

    gate: hidden (the paper's equations; one level E)
        c = CA(q = a, kv = E)
        s = sigmoid(a)                                    no weights of its own
        B_vis = s * 1[s > tau]          B_lan = (1 - s) * 1[1 - s > tau]
        a' = B_vis * c + B_lan * a

    gate: concat (the authors' code; levels E_1 .. E_K of a visual encoder, one CA shared by all levels)
        c_i = CA(q = LN1 a, kv = LN1 E_i)                 LN1: the block's own pre-attention norm
        alpha_i = sigmoid(W_i [a ; c_i] + b_i)            per level and block
        g_i = alpha_i * 1[alpha_i > tau] * a + (1 - alpha_i) * 1[alpha_i < 1 - tau] * c_i
        a' = (g_1 + .. + g_K) / sqrt(K)                   or / K with level_norm: mean

    gate: none (ablation)
        B_vis = B_lan = 1, so that a' = c + a with one level

    y = a' + MLP(LN2 a')                                  a' replaces a: there is no residual around the unit

The two forms name the gate the other way round: sigmoid(a) lets the picture in, alpha lets the words in. Diagnostics
are therefore named by role ("visual_gate", "language_gate"). A gate below tau is exactly shut, yet the other side keeps
a gradient, so it can open again; gates renormalised to sum 1 would not ("self-resurrecting"). 0 <= tau < 0.5, else both
sides can be shut at once.

``every`` n: the unit stands in blocks 0, n, 2n ...; the others stay the language model's own.

    start: neutral        c_i = 0 and alpha_i = 1 / sqrt(K) at first, so that a' = a, the language model's own logits,
                          with gates open on both sides (gate: concat with level_norm: sqrt, or none with mean)
    start: paper          W_i uniform as torch has it, b_i = gate_bias_init, c_i ~ the output matrix of GPT-2's start

The levels are the last K of the vision encoder where it hands them out (``level_source: vision``), LN(Linear C -> D)
each; otherwise, as in the authors' code, those of a small trained encoder over its tokens (``encoder``):
LN(drop(GELU(Linear C -> D))), GELU by tanh, then K post-norm layers without dropout on attention weights. ``auto``
chooses. ``encoder_form: early`` is that of runs before there was a choice: GELU by erf, dropout on attention weights.

``reference_defects: true`` computes what the authors' code does where it is wrong, for comparisons with it. Its mask of
regions tests whether x = LN(drop(GELU(..))) sums to exactly 0, so padding is not masked, and a real region may be; this
one mask serves the encoder's layers and all cross-attention. Its dropout in the language model falls on the whole
stream (0.1) after self-attention and after the MLP, and nowhere else: the language model's own is switched off.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.contracts import Block, Language, LanguageSpec, Memory, Text, VisionSpec, Visual, present
from src.fusion.base import Writer, gpt2_init
from src.kinds import BelowOne, Ge, Lt, Size
from src.layers.attention import CrossAttention, key_bias
from src.layers.cache import Cache
from src.layers.dropout import Dropout, dropout
from src.layers.level_encoder import LevelEncoder, LevelProjector
from src.layers.lists import ModuleList
from src.layers.notes import Aux, note
from src.layers.starts import silent_start, xavier_start


class SRAU(Writer):
    """See the formulas above. ``share_ln``: LN1 on queries and levels; without it both enter unnormalised."""

    where = "A"

    def __init__(
        self,
        vision: VisionSpec,
        language: LanguageSpec,
        gate: Literal["concat", "hidden", "none"],
        tau: Annotated[float, Ge(0), Lt(0.5)],
        levels: Size,
        level_norm: Literal["sqrt", "mean"],
        level_source: Literal["auto", "vision", "encoder"],
        every: Size,
        share_ln: bool,
        start: Literal["neutral", "paper"],
        gate_bias_init: float,
        cross_dropout: BelowOne,
        encoder_dropout: BelowOne,
        encoder_form: Literal["authors", "early"],
        reference_defects: bool,
    ):
        super().__init__(vision, language)
        self.gate, self.tau, self.share_ln, self.reference_defects = gate, tau, share_ln, reference_defects
        self.levels, self.level_scale = levels, levels**-0.5 if level_norm == "sqrt" else 1 / levels
        self.every, self.preserves_lm_at_init = every, start == "neutral"
        if level_source == "auto":
            level_source = "vision" if vision.levels >= levels and not reference_defects else "encoder"
        self.needs_levels = levels if level_source == "vision" else 0
        D = language.width
        self.encoder = (
            LevelProjector(vision.width, D, levels)
            if level_source == "vision"
            else LevelEncoder(vision.width, D, language.heads, levels, encoder_dropout, encoder_form)
        )
        units = range(0, language.layers, every)
        self.cross = ModuleList(CrossAttention(D, D, language.heads, dropout=cross_dropout) for _ in units)
        for cross in self.cross:
            xavier_start(cross)
            gpt2_init(cross.out)
        # W_i, b_i for every unit and level; none in the paper's form
        gated = units if gate == "concat" else ()
        self.gates = ModuleList(LearntGates(D, levels, gate_bias_init) for _ in gated)
        if start == "neutral":
            silent_start(self.cross)
            for gates in self.gates:
                gates.even_start()

    @staticmethod
    def refusals(fusion, vision):
        if fusion.start == "neutral":
            open_gates = fusion.gate == "concat" and fusion.level_norm == "sqrt" and fusion.gate_bias_init == 0
            room = fusion.tau < fusion.levels**-0.5 < 1 - fusion.tau
            if not (open_gates and room) and not (fusion.gate == "none" and fusion.level_norm == "mean"):
                yield (
                    f"fusion.gate={fusion.gate} with levels={fusion.levels}, level_norm={fusion.level_norm}, "
                    f"tau={fusion.tau:g} and gate_bias_init={fusion.gate_bias_init:g} cannot begin at the language "
                    "model's logits; add fusion.start=paper."
                )
        if fusion.reference_defects and fusion.level_source == "vision":
            yield "fusion.reference_defects=true needs fusion.level_source=encoder: the defects are an encoder's."
        if fusion.level_source == "vision" and fusion.levels > vision.levels:
            yield (
                f"fusion.levels={fusion.levels} is more than the {vision.levels} levels that the vision encoder hands "
                "out; use fewer, or fusion.level_source=encoder."
            )

    def init_from(self, lm: Language) -> None:
        if self.reference_defects:
            for part in lm.modules():
                if isinstance(part, Dropout):
                    part.p = 0.0

    def encode(self, lm: Language, visual: Visual, aux: Aux | None = None) -> Memory:
        E_IKND, valid_IN = self._levels(visual)
        memory = Memory.of(bias=self._region_bias(valid_IN, E_IKND.dtype))
        E_XND = E_IKND.flatten(0, 1)  # X = I*K
        for i, block in enumerate(lm.blocks()[:: self.every]):
            k_XHNd, v_XHNd = self.cross[i].keys_values(block.norm(E_XND) if self.share_ln else E_XND)
            memory[f"k{i}"], memory[f"v{i}"] = (x.unflatten(0, E_IKND.shape[:2]) for x in (k_XHNd, v_XHNd))
        return memory  # (I, K, H, N, d) each

    def decode(
        self, lm: Language, memory: Memory, text: Text, cache: Cache | None = None, aux: Aux | None = None
    ) -> Tensor:
        h_BTD, walk = lm.begin(lm.embed(text.ids_BT), text, cache)
        for l, block in enumerate(lm.blocks()):
            a_BTD = self._stream_drop(block.attend(h_BTD, walk))
            if l % self.every == 0:
                a_BTD = self._fuse(l // self.every, block, a_BTD, memory, aux)
            h_BTD = self._stream_drop(block.feed(a_BTD))
        return lm.final_norm(h_BTD)

    def _fuse(self, i: int, block: Block, a_BTD: Tensor, memory: Memory, aux: Aux | None) -> Tensor:
        """a' of unit i, in ``block``."""
        q_BTD = block.norm(a_BTD) if self.share_ln else a_BTD
        c_KBTD = self.cross[i].levels(q_BTD, memory[f"k{i}"], memory[f"v{i}"], memory.get("bias"), aux)
        visual_KBTD, language_KBTD = self._gate_pair(i, a_BTD, c_KBTD)
        note(aux, "visual_gate", visual_KBTD.transpose(0, 1))  # (B, K, T, D)
        note(aux, "language_gate", language_KBTD.transpose(0, 1))
        return self.level_scale * ((visual_KBTD * c_KBTD).sum(0) + language_KBTD.sum(0) * a_BTD)

    def _gate_pair(self, i: int, a_BTD: Tensor, c_KBTD: Tensor) -> tuple[Tensor, Tensor]:
        """Thresholded gates (visual, language), (K, B, T, D) each."""
        if self.gate == "none":
            return torch.ones_like(c_KBTD), torch.ones_like(c_KBTD)
        if self.gates:
            visual_KBTD = 1 - torch.sigmoid(self.gates[i](a_BTD, c_KBTD))
        else:
            visual_KBTD = torch.sigmoid(a_BTD).expand_as(c_KBTD)
        return F.threshold(visual_KBTD, self.tau, 0.0), F.threshold(1 - visual_KBTD, self.tau, 0.0)

    def _levels(self, visual: Visual) -> tuple[Tensor, Tensor | None]:
        """The levels (I, K, N, D), and which regions are read, (I, N); None where all are."""
        if isinstance(self.encoder, LevelProjector):
            return self.encoder(present(visual.levels_IKNC(), "levels of the vision encoder")), visual.valid_IN
        x_IND, valid_IN = self.encoder.enter(visual.tokens_INC), visual.valid_IN
        if self.reference_defects:
            valid_IN = x_IND.sum(-1) != 0  # x leaves a LayerNorm, so this is nearly always true
        return self.encoder.climb(x_IND, valid_IN), valid_IN

    def _region_bias(self, valid_IN: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """Additive mask for all levels, (I, K, 1, 1, N), or None when there is nothing to mask."""
        bias_I11N = key_bias(valid_IN, dtype)
        return None if bias_I11N is None else bias_I11N[:, None].expand(-1, self.levels, -1, -1, -1)

    def _stream_drop(self, h_BTD: Tensor) -> Tensor:
        return dropout(h_BTD, 0.1, self.training) if self.reference_defects else h_BTD


class LearntGates(nn.Module):
    """Logits W_i [a ; c_i] + b_i of one block, one Linear per level; (B, T, D), (K, B, T, D) -> (K, B, T, D)."""

    def __init__(self, width: int, levels: int, bias_init: float):
        super().__init__()
        self.W = ModuleList(nn.Linear(2 * width, width) for _ in range(levels))
        for W in self.W:
            nn.init.constant_(W.bias, bias_init)

    def even_start(self) -> None:
        """alpha_i = 1 / sqrt(K), whatever the inputs."""
        alpha = len(self.W) ** -0.5
        for W in self.W:
            nn.init.zeros_(W.weight)
            nn.init.constant_(W.bias, math.log(alpha / (1 - alpha)))

    def forward(self, a_BTD: Tensor, c_KBTD: Tensor) -> Tensor:
        if not torch.is_grad_enabled():  # captioning: few rows to copy, and whole matrices can be laid out beforehand
            return torch.stack([W(torch.cat([a_BTD, c_BTD], -1)) for W, c_BTD in zip(self.W, c_KBTD, strict=True)])
        # W [a ; c] = W_a a + W_c c: no copy of a for every level
        D = a_BTD.shape[-1]
        return torch.stack(
            [
                F.linear(a_BTD, W.weight[:, :D], W.bias) + F.linear(c_BTD, W.weight[:, D:])
                for W, c_BTD in zip(self.W, c_KBTD, strict=True)
            ]
        )
