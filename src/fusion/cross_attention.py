"""Control: plain cross-attention in every block, without a gate (slot A).

    a  = x + SelfAttention(LN1 x)                    the language model's own
    u  = a + CrossAttention(q = LN a, kv = LN X)     X: visual tokens (I, N, C); one LN for all blocks
    y  = u + MLP(LN2 u)                              the language model's own

This is the layer that transformers' GPT2Model(add_cross_attention=True) uses, and Vaswani et al. 2017 (arXiv
1706.03762, section 3.2.3) in pre-norm form. Flamingo's "vanilla cross-attention" ablation is this with a tanh gate.
There X comes out of an encoder's last norm; other encoders' tokens do not, so LN X is made here, as SRAU, VC-GPT,
Flamingo and CoCa do.

``start: neutral`` begins with W_out = 0, so at the language model's own logits; ``usual`` as GPT-2's layers begin.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from src.contracts import Language, LanguageSpec, Memory, Text, VisionSpec, Visual
from src.fusion.base import Writer, gpt2_init
from src.kinds import BelowOne, Size
from src.layers.attention import CrossAttention, key_bias
from src.layers.cache import Cache
from src.layers.dropout import Dropout
from src.layers.lists import ModuleList
from src.layers.notes import Aux
from src.layers.starts import silent_start


class PlainCrossAttention(Writer):
    """``every``: a cross-attention in blocks 0, every, 2*every ...; ``norm_visual``: LN on X, without it X as it is.

    ``dropout`` acts on the attention's weights and its output.
    """

    where = "A"

    def __init__(
        self,
        vision: VisionSpec,
        language: LanguageSpec,
        every: Size,
        norm_visual: bool,
        start: Literal["neutral", "usual"],
        dropout: BelowOne,
    ):
        super().__init__(vision, language)
        self.every = every
        self.norm_visual = nn.LayerNorm(vision.width) if norm_visual else nn.Identity()
        places = range(0, language.layers, every)
        self.norms = ModuleList(nn.LayerNorm(language.width) for _ in places)
        self.cross = ModuleList(
            CrossAttention(language.width, vision.width, language.heads, dropout=dropout) for _ in places
        )
        self.drop = Dropout(dropout)
        gpt2_init(self)
        self.preserves_lm_at_init = start == "neutral"
        if self.preserves_lm_at_init:
            silent_start(self.cross)

    def encode(self, lm: Language, visual: Visual, aux: Aux | None = None) -> Memory:
        X_INC = self.norm_visual(visual.tokens_INC)
        memory = Memory.of(bias=key_bias(visual.valid_IN, X_INC.dtype))
        for i, cross in enumerate(self.cross):
            memory[f"k{i}"], memory[f"v{i}"] = cross.keys_values(X_INC)  # (I, H, N, d) each
        return memory

    def decode(
        self, lm: Language, memory: Memory, text: Text, cache: Cache | None = None, aux: Aux | None = None
    ) -> Tensor:
        h_BTD, walk = lm.begin(lm.embed(text.ids_BT), text, cache)
        bias = memory.get("bias")
        for l, block in enumerate(lm.blocks()):
            h_BTD = block.attend(h_BTD, walk)
            if l % self.every == 0:
                i = l // self.every
                q_BTD = self.norms[i](h_BTD)
                h_BTD = h_BTD + self.drop(self.cross[i](q_BTD, memory[f"k{i}"], memory[f"v{i}"], bias, aux))
            h_BTD = block.feed(h_BTD)
        return lm.final_norm(h_BTD)
