"""VC-GPT's self-ensemble: the finished language model and a visual stack on top of it add their logits (slots F, G).

Luo, Xi, Zhang, Ma 2022, "A Frustratingly Simple Approach for End-to-End Image Captioning" (earlier versions: "VC-GPT:
Visual Conditioned GPT for End-to-End Generative Vision-and-Language Pre-training"), arXiv 2201.12723:

    h_G    = LN_f(LM(text))                            the plain language model, which sees no picture
    X      = LN(W_v V)                                 V: visual tokens (I, N, C)
    f_0    = h_G
    f_j    = FusionLayer_j(f_{j-1}, X), j = 1..J       causal self-attention, cross-attention to X, MLP; pre-norm
    h_F    = LN(f_J)
    logits = W_G h_G + W_F h_F                         W_G starts as a copy of the word embeddings

The sum stands in logit space: p is proportional to p_G * exp(W_F h_F), a product of experts, no average. A language
model that bounds its logits (Gemma 2) bounds W_G h_G, and not W_F h_F.

    start: neutral                 W_F = 0, or with a shared head a last norm of scale 0: the language model's logits
                                   exactly; the rest of the stack learns from the second step on
    start: paper                   W_F ~ N(0, 0.02^2): with |h_F| = sqrt(D), logits small beside a trained model's
    wg: auto                       a trained copy where the language model trains; where it is frozen, the model's own

    self_ensemble: false           logits = W_F h_F, the paper's ablation
    head: shared                   logits = W (h_G + h_F) with the language model's own W, no matrix W_F: what Flamingo
                                   (arXiv 2204.14198, table 3) calls grafting

UNVERIFIED beyond the abstract, which sets this against cross-attention inserted into GPT-2; no full text or code could
be read: J, the heads, the order of norms, dropout, and whether the paper freezes anything; its title says end-to-end.
The layer here is GPT-2's block with cross-attention.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.contracts import Language, LanguageSpec, Memory, Text, VisionSpec, Visual
from src.fusion.base import Writer, gpt2_init
from src.kinds import BelowOne, Size
from src.layers.attention import CrossAttention, key_bias, self_attention, split_heads
from src.layers.cache import Cache
from src.layers.dropout import Dropout
from src.layers.lists import ModuleList
from src.layers.notes import Aux, note
from src.layers.walk import Walk


class VCGPT(Writer):
    """``wg``: copy_trained and copy_frozen untie W_G from the input embeddings, tied keeps the model's own output, auto
    is tied for a frozen language model and else copy_trained.

    Hidden states are [h_G ; h_F], (B, T, 2 D); ``readout`` takes them apart.
    """

    where = "F+G"

    def __init__(
        self,
        vision: VisionSpec,
        language: LanguageSpec,
        layers: Size,
        head: Literal["separate", "shared"],
        self_ensemble: bool,
        wg: Literal["auto", "copy_trained", "copy_frozen", "tied"],
        start: Literal["neutral", "paper"],
        dropout: BelowOne,
    ):
        super().__init__(vision, language)
        D, V = language.width, language.vocabulary
        self.self_ensemble = self_ensemble
        self.W_v, self.norm_v = nn.Linear(vision.width, D), nn.LayerNorm(D)
        self.stack = ModuleList(FusionLayer(j, D, language.heads, dropout) for j in range(layers))
        self.norm = nn.LayerNorm(D)
        gpt2_init(self)
        if wg == "auto":
            wg = "tied" if language.frozen else "copy_trained"
        self.preserves_lm_at_init = start == "neutral"
        self.W_F = self.W_G = None
        if head == "separate":
            self.W_F = nn.Parameter(torch.randn(V, D) * 0.02 if start == "paper" else torch.zeros(V, D))
            if self_ensemble and wg == "copy_trained":
                self.W_G = nn.Parameter(torch.zeros(V, D))
            elif self_ensemble and wg == "copy_frozen":
                del self.W_G
                self.register_buffer("W_G", torch.zeros(V, D))
        elif start == "neutral":
            nn.init.zeros_(self.norm.weight)

    @staticmethod
    def refusals(fusion):
        if fusion.start == "neutral" and not fusion.self_ensemble:
            yield "fusion.self_ensemble=false cannot begin with the language model's logits; add fusion.start=paper."

    def init_from(self, lm: Language) -> None:
        if self.W_G is not None:
            with torch.no_grad():
                self.W_G.copy_(lm.unembedding())

    def encode(self, lm: Language, visual: Visual, aux: Aux | None = None) -> Memory:
        X_IND = self.norm_v(self.W_v(visual.tokens_INC))
        memory = Memory.of(bias=key_bias(visual.valid_IN, X_IND.dtype))
        for j, layer in enumerate(self.stack):
            memory[f"k{j}"], memory[f"v{j}"] = layer.cross.keys_values(X_IND)  # (I, H, N, d) each
        return memory

    def decode(
        self, lm: Language, memory: Memory, text: Text, cache: Cache | None = None, aux: Aux | None = None
    ) -> Tensor:
        hG_BTD, walk = lm.read(text, cache)
        f_BTD = hG_BTD
        bias = memory.get("bias")
        for j, layer in enumerate(self.stack):
            f_BTD = layer(f_BTD, walk, memory[f"k{j}"], memory[f"v{j}"], bias, aux)
        hF_BTD = self.norm(f_BTD)
        if aux is not None:
            self._note_share(lm, hG_BTD, hF_BTD, aux)
        return torch.cat([hG_BTD, hF_BTD], dim=-1)  # (B, T, 2D)

    def readout(self, lm: Language, hidden_XE: Tensor) -> Tensor:
        hG_XD, hF_XD = hidden_XE.chunk(2, dim=-1)
        if not self.self_ensemble:
            return self._fusion_logits(lm, hF_XD)
        if self.W_F is None:
            return lm.unembed(hG_XD + hF_XD)
        return self._language_logits(lm, hG_XD) + self._fusion_logits(lm, hF_XD)

    def _language_logits(self, lm: Language, hG_XD: Tensor) -> Tensor:
        return lm.unembed(hG_XD) if self.W_G is None else lm.bounded(F.linear(hG_XD, self.W_G))

    def _fusion_logits(self, lm: Language, hF_XD: Tensor) -> Tensor:
        return lm.unembed(hF_XD) if self.W_F is None else F.linear(hF_XD, self.W_F)

    def _note_share(self, lm: Language, hG_BTD: Tensor, hF_BTD: Tensor, aux: Aux) -> None:
        """The stack's share of the variance of the logits over the vocabulary, (B, T).

        Variances, because logits are free up to a constant at every position.
        """
        zF_X = self._fusion_logits(lm, hF_BTD.flatten(0, 1)).float().var(-1)
        zG_X = self._language_logits(lm, hG_BTD.flatten(0, 1)).float().var(-1)
        share_X = zF_X / (zF_X + zG_X) if self.self_ensemble else torch.ones_like(zF_X)
        note(aux, "logit_share", share_X.unflatten(0, hF_BTD.shape[:2]))


class FusionLayer(nn.Module):
    """f + SA(LN f), then + CA(LN f, X), then + MLP(LN f): GPT-2's block with cross-attention (Radford et al. 2019)."""

    def __init__(self, index: int, width: int, heads: int, dropout: float):
        super().__init__()
        self.slot, self.heads, self.dropout = f"fusion.{index}", heads, dropout
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.cross = CrossAttention(width, width, heads, dropout=dropout)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = Dropout(dropout)

    def forward(
        self, f_BTD: Tensor, walk: Walk, k_IHNd: Tensor, v_IHNd: Tensor, bias: Tensor | None, aux: Aux | None
    ) -> Tensor:
        f_BTD = f_BTD + self.drop(self._attend(self.norm1(f_BTD), walk))
        f_BTD = f_BTD + self.drop(self.cross(self.norm2(f_BTD), k_IHNd, v_IHNd, bias, aux))
        inner_BTE = F.gelu(self.fc1(self.norm3(f_BTD)), approximate="tanh")
        return f_BTD + self.drop(self.fc2(inner_BTE))

    def _attend(self, f_BTD: Tensor, walk: Walk) -> Tensor:
        q_BHTd, k_BHTd, v_BHTd = split_heads(self.qkv(f_BTD), self.heads)
        dropout = self.dropout if self.training else 0.0
        read_BTD = self_attention(q_BHTd, k_BHTd, v_BHTd, walk, self.slot, q_BHTd.shape[-1] ** -0.5, dropout)
        return self.out(read_BTD)
