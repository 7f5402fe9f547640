"""Flamingo: gated cross-attention to a few latents per picture, in front of the language model's blocks (slot P).

Alayrac et al. 2022, "Flamingo: a Visual Language Model for Few-Shot Learning", NeurIPS, arXiv 2204.14198v1, section
3.1. Letters beside those of contracts.py: R latents per picture, L inserted layers, F frames of a video.

    resampler, per picture or video of F frames                    X: its tokens (N, C)
        X = X + time_f                              one learnt vector per frame; none with max_frames = 1
        Z = latents (R, C)                          ~ N(0, latents_std^2), learnt; 1 in all public codes
        6 times:
            Z = Z + Attention(q = LN_z Z, kv = [LN_x X ; LN_z Z])
            Z = Z + FFW(LN Z)
        Z = LN Z

    gated xattn-dense, before every block l with l mod n = 0       y: hidden states (T, D)
        y = y + tanh(alpha) * A V W_o               q = LN y, kv = Z; A = softmax(q k / sqrt(d)) over allowed latents
        y = y + tanh(beta) * FFW(LN y)              alpha = beta = gate_init; at 0 exactly the language model

    FFW(x) = W_2 relu(W_1 x)^2                      inner width 4 D; no biases

    Token t may read picture m (1-based; phi(t) is the picture it belongs to, 0 = none) if
        last_image: true     m = phi(t)             earlier pictures reach t through the words only
        last_image: false    m <= phi(t)
    and m is no padding. A token that may read nothing reads exactly 0, yet its FFW still acts: once beta has moved,
    text in front of all pictures is no longer the plain language model's.

Departures from the paper
    keys and values    no LN after the resampler's last one, as in open_flamingo, flamingo-mini and Idefics
    heads              8 of width 64 everywhere, as in open_flamingo; the paper has width 128, 16 heads in the resampler
                       and D / 128 in the inserted layers
    width of Z         that of the vision encoder, as in open_flamingo, or ``resampler_width`` behind a linear map
    end of a chunk     the language model's own end token, so no embedding is added or trained
    weight decay       none on latents and time embeddings; the paper's recipe spares the whole resampler
    no biases          in projections, as in the public codes (UNVERIFIED for the authors' own)
    dropout            on attention weights and branch outputs, the rate of all mechanisms; the public codes have none
    gates              learn ``optim.gate_rate`` times as fast: Adam moves a scalar by the sum of learning rates at
                       most, about 50 in the paper's training and less than 1 in short ones

Departures from the public codes: they insert at (l + 1) mod n = 0 (open_flamingo) or after the block (lucidrains), give
a uniform average over all pictures, later ones included, to tokens without a picture in the mode of all previous
pictures and to tokens whose picture was cut off, and compute keys and values again for every decoded token.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from src.contracts import Language, LanguageSpec, Memory, Text, UserError, VisionSpec, Visual
from src.fusion.base import Writer, gpt2_init
from src.kinds import BelowOne, Positive, Size
from src.layers.attention import additive_mask
from src.layers.cache import Cache
from src.layers.gated_cross_attention import GatedCrossAttention
from src.layers.lists import ModuleList
from src.layers.notes import Aux, note
from src.layers.resampler import Resampler


class Flamingo(Writer):
    """See the formulas above; ``every`` is n, ``latents`` R, ``gate: false`` replaces both tanh gates by 1.

    ``encode`` raises UserError for a video of more than ``max_frames`` frames.
    """

    where = "P"
    multi_image = True
    preserves_lm_at_init = True

    def __init__(
        self,
        vision: VisionSpec,
        language: LanguageSpec,
        every: Size,
        latents: Size,
        latents_std: Positive,
        resampler_layers: Size,
        resampler_width: Size | None,
        heads: Size,
        head_width: Size,
        ffw_ratio: Size,
        activation: Literal["sqrelu", "gelu"],
        max_frames: Size,
        last_image: bool,
        gate: bool,
        gate_init: float,
        dropout: BelowOne,
    ):
        super().__init__(vision, language)
        self.every, self.latents, self.max_frames, self.last_image = every, latents, max_frames, last_image
        self.preserves_lm_at_init = gate and gate_init == 0
        shape = {"heads": heads, "head_width": head_width, "ffw_ratio": ffw_ratio, "activation": activation}
        shape["dropout"] = dropout
        width = resampler_width or vision.width
        self.project = nn.Identity() if width == vision.width else nn.Linear(vision.width, width, bias=False)
        self.resampler = Resampler(width, latents, latents_std, resampler_layers, max_frames, **shape)
        self.layers = ModuleList(
            GatedCrossAttention(language.width, width, gate=gate_init if gate else None, **shape)
            for _ in range(0, language.layers, every)
        )
        gpt2_init(self)
        self.undecayed = tuple(f"resampler.{name}" for name, _ in self.resampler.named_parameters(recurse=False))
        self.scalar_gates = tuple(
            f"layers.{i}.{name}" for i in range(len(self.layers)) for name in ("alpha", "beta") if gate
        )

    @staticmethod
    def refusals(fusion):
        if not fusion.gate and fusion.gate_init != 0:
            yield f"fusion.gate_init={fusion.gate_init} needs fusion.gate=true."

    def encode(self, lm: Language, visual: Visual, aux: Aux | None = None) -> Memory:
        """Keys and values of all latents for each inserted layer, (I, H, M*R, d), and which pictures exist, (I, M).

        With ``aux``, the last resampler layer's weights over picture tokens are noted under "pooler", (I*M, R, N), and
        kept in the memory, so that ``decode`` can say which tokens a word looks at.
        """
        if visual.frames > self.max_frames:
            raise UserError(
                f"A video has {visual.frames} frames but fusion.max_frames is {self.max_frames}; raise it or use fewer "
                "frames."
            )
        I, M, N, _ = visual.tokens_IMNC.shape
        valid_XN, image_valid_IM = None, torch.ones(I, M, dtype=torch.bool, device=visual.tokens_IMNC.device)
        if visual.valid_IN is not None:
            valid_IMN = visual.valid_IN.unflatten(1, (M, N))
            valid_XN, image_valid_IM = valid_IMN.flatten(0, 1), valid_IMN.any(-1)  # no valid token: no picture
        X_XNC = self.project(visual.tokens_IMNC.flatten(0, 1))  # X = I*M
        Z_XRC = self.resampler(X_XNC, visual.frames, valid_XN, aux)
        Z_ISC = Z_XRC.unflatten(0, (I, M)).flatten(1, 2)  # S = M*R
        memory = Memory(image_valid=image_valid_IM)
        for i, layer in enumerate(self.layers):
            memory[f"k{i}"], memory[f"v{i}"] = layer.cross.keys_values(Z_ISC)
        if aux is not None:
            memory["pooler"] = aux["pooler"][-1].unflatten(0, (I, M))  # (I, M, R, N)
        return memory

    def decode(
        self, lm: Language, memory: Memory, text: Text, cache: Cache | None = None, aux: Aux | None = None
    ) -> Tensor:
        """Hidden states (B, T, D). With ``aux``, per inserted layer:

        "attention": weights of text over picture tokens, (B, H, T, M*N), text over latents times the last resampler
        layer's latents over tokens (earlier layers and residuals are left out); rows sum to 1, or 0 where nothing is
        read. Without "pooler" in the memory, "latent_attention" over latents instead, (B, H, T, M*R).
        "tanh_gate": tanh(alpha) and tanh(beta), (2,).
        """
        reads_BT1, bias = self._sight(memory, text.phi_BT)
        h_BTD, walk = lm.begin(lm.embed(text.ids_BT), text, cache)
        for l, block in enumerate(lm.blocks()):
            if l % self.every == 0:
                i = l // self.every
                read: Aux | None = None if aux is None else {}
                h_BTD = self.layers[i](h_BTD, memory[f"k{i}"], memory[f"v{i}"], bias, reads_BT1, read)
                if read is not None:
                    self._note(self.layers[i], read["attention"][0], reads_BT1, memory, aux)
            h_BTD = block.feed(block.attend(h_BTD, walk))
        return lm.final_norm(h_BTD)

    def scalars(self) -> dict[str, float]:
        """tanh(alpha) and tanh(beta) by the number of the block that the layer stands before."""
        gates: dict[str, Tensor] = {}
        for i, layer in enumerate(self.layers):
            if layer.alpha is not None and layer.beta is not None:
                gates[f"tanh_alpha/{i * self.every}"] = layer.alpha
                gates[f"tanh_beta/{i * self.every}"] = layer.beta
        if not gates:
            return {}
        values = torch.cat([gate.detach().float() for gate in gates.values()]).tanh().tolist()  # one transfer for all
        return dict(zip(gates, values, strict=True))

    def _sight(self, memory: Memory, phi_BT: Tensor) -> tuple[Tensor, Tensor | None]:
        """Which tokens read anything, (B, T, 1), and the additive mask (I, 1, G*T, M*R), or None with one at most."""
        image_valid_IM, dtype = memory["image_valid"], memory["k0"].dtype
        I, M = image_valid_IM.shape
        allowed_BTM = allowed_pictures(phi_BT, image_valid_IM.repeat_interleave(len(phi_BT) // I, 0), self.last_image)
        reads_BT1 = allowed_BTM.any(-1, keepdim=True)
        if M <= 1:
            return reads_BT1, None  # all latents or none: the row factor alone says it
        bias_BTM = additive_mask(allowed_BTM, dtype)  # finite: so is a row without any allowed latent
        return reads_BT1, bias_BTM.repeat_interleave(self.latents, -1).view(I, 1, -1, M * self.latents)

    def _note(
        self, layer: GatedCrossAttention, weights_BHTS: Tensor, reads_BT1: Tensor, memory: Memory, aux: Aux | None
    ) -> None:
        weights_BHTS = weights_BHTS * reads_BT1[:, None]  # S = M*R
        pooler_IMRN = memory.get("pooler")
        if pooler_IMRN is None:
            note(aux, "latent_attention", weights_BHTS)
        else:
            pooler_BMRN = pooler_IMRN.repeat_interleave(len(weights_BHTS) // len(pooler_IMRN), 0)
            weights_BHTMR = weights_BHTS.unflatten(-1, pooler_BMRN.shape[1:3])
            note(aux, "attention", torch.einsum("bhtmr,bmrn->bhtmn", weights_BHTMR, pooler_BMRN).flatten(-2))
        if layer.alpha is not None and layer.beta is not None:
            note(aux, "tanh_gate", torch.cat([layer.alpha, layer.beta]).tanh())


def allowed_pictures(phi_BT: Tensor, image_valid_BM: Tensor, last_image: bool) -> Tensor:
    """Whether token t may read picture m, (B, T, M): its own only, or all up to it; padding never.

    Without ``last_image``, a token whose own picture is absent (phi > M) still reads those before it.
    """
    phi_BT1 = phi_BT[:, :, None]
    m_M = torch.arange(1, image_valid_BM.shape[1] + 1, device=phi_BT.device)
    own_BTM = phi_BT1 == m_M if last_image else phi_BT1 >= m_M
    return own_BTM & image_valid_BM[:, None]
