"""CoCa: a decoder whose lower half never sees the picture, and one text vector to compare with it (slot A, upper half).

Yu, Wang, Vasudevan, Yeung, Seyedhosseini, Wu 2022, "CoCa: Contrastive Captioners are Image-Text Foundation Models",
arXiv 2205.01917, section 3.2, on a language model's own blocks:

    pool(X; Q) = MHA(q = LN Q, kv = LN X)             attentional pooler, Q learnt; no residual, no MLP
    U          = pool(X; Q_1 .. Q_n)                  for the decoder; X: visual tokens (I, N, C)
    v          = pool(U; Q_con)                       for retrieval; pool: parallel has pool(X; Q_con)
    [t ; cls]  = lower blocks on [tokens ; CLS]       unimodal: no picture; CLS: a learnt vector behind the text
    a          = t + SelfAttention(LN1 t)             upper blocks, tokens only: their self-attention,
    u          = a + CA(q = LN a, kv = LN U)              what the words read from the picture,
    t          = u + MLP(LN2 u)                           and their MLP
    x, y       = norm(W_i v), norm(W_t LN cls)        unit vectors of a picture and of a text

    L_con = (CE(x y^T / sigma) + CE(y x^T / sigma)) / 2        over the pictures of all processes; sigma learnt
    L     = contrastive_weight * L_con + caption_weight * L_cap

Text is causal, so no token sees CLS, and CLS reaches neither the cache nor the upper half. It sees the real tokens of
its own text, the end included, and stands at the position after the last of them. One caption per picture enters L_con:
a second one would be a false negative of the first.

Weights: the paper's 2 L_cap + 1 L_con has the sum over a caption's T tokens as L_cap and the sum of both directions as
L_con. In open_clip's units, which are ours, both are means: divided by T, the paper's sum is 2 L_cap + (2 / T) L_con. A
contrastive weight of 0.15 is that of captions of 13 tokens; open_clip's flag is 1.

``start: neutral`` begins with CA's output at 0, so at the language model's logits; ``paper``: as open_clip begins.

Where open_clip differs:

    C-d1   its shipped models have one pooler of 256 queries, of which one is v and 255 go to the decoder
    C-d3   with padding, its CLS sees one pad token and not itself, unless correct_cls_mask is set; it also stands at
           the last position of the padded row, whatever the length of the text
    C-d4   its upper layers have two MLPs: a full block, then a full cross-attention block. The count of the paper's
           parameters (297 M at base size) fits one
    C-d6   its L_cap skips token id 0, which is a word ("!"); here padding is known by position

kv = LN U: the equations read here do not say whether U is normalised. open_clip has an LN on U in every layer, which
equals one shared LN, as the matrices behind it take up its scale and offset (and lucidrains' CoCa has one shared LN).
Dropout is that of all mechanisms: on attention weights and on what a word reads; open_clip has none. UNVERIFIED: the
paper's; a bound on 1 / sigma (none here; CLIP's is 100).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.contracts import Language, LanguageSpec, Memory, Text, VisionSpec, Visual
from src.fusion.base import Retriever, Terms, Writer, gpt2_init
from src.kinds import BelowOne, Positive, Rate, Size
from src.layers.attention import CrossAttention, key_bias
from src.layers.cache import Cache
from src.layers.contrast import Contrast
from src.layers.dropout import Dropout
from src.layers.lists import ModuleList
from src.layers.notes import Aux, note, noted
from src.layers.pooler import AttentionalPooler
from src.layers.starts import silent_start
from src.layers.walk import Walk


class CoCa(Writer, Retriever):
    """See the formulas above. ``queries``: n; ``n_uni``: how many lower blocks, None for half of them.

    ``embed_width``: width E of x and y, None for the language model's. With ``contrastive_weight`` 0 this is a plain
    captioner: no CLS, no term, and what only L_con would train is frozen (data-parallel training refuses parameters
    without a gradient) and not offered for retrieval.
    """

    where = "A"
    undecayed = ("pooler.query_nD", "contrast.pooler.query_nD")

    def __init__(
        self,
        vision: VisionSpec,
        language: LanguageSpec,
        queries: Size,
        pool: Literal["cascade", "parallel"],
        n_uni: Size | None,
        embed_width: Size | None,
        pooler_heads: Size,
        start: Literal["neutral", "paper"],
        contrastive_weight: Rate,
        caption_weight: Rate,
        temperature_init: Positive,
        dropout: BelowOne,
    ):
        super().__init__(vision, language)
        D, heads = language.width, language.heads
        n_uni = language.layers // 2 if n_uni is None else n_uni
        embed_width = D if embed_width is None else embed_width
        self.n_uni, self.cascade = n_uni, pool == "cascade"
        self.contrastive_weight, self.caption_weight = contrastive_weight, caption_weight
        self.pooler = AttentionalPooler(D, vision.width, pooler_heads, queries, dropout)
        self.drop = Dropout(dropout)
        self.norm_u = nn.LayerNorm(D)
        upper = range(n_uni, language.layers)
        self.norms = ModuleList(nn.LayerNorm(D) for _ in upper)
        self.cross = ModuleList(CrossAttention(D, D, heads, dropout=dropout) for _ in upper)
        source_width = D if self.cascade else vision.width
        self.contrast = Contrast(D, source_width, pooler_heads, embed_width, temperature_init, dropout)
        for part in (self.cross, self.contrast.W_i, self.contrast.W_t):
            gpt2_init(part)
        self.preserves_lm_at_init = start == "neutral"
        if self.preserves_lm_at_init:
            silent_start(self.cross)
        self.compares = self.reads_ends = contrastive_weight > 0
        self.contrast.requires_grad_(self.compares)

    @staticmethod
    def refusals(fusion, language):
        if fusion.contrastive_weight == fusion.caption_weight == 0:
            yield "fusion.contrastive_weight and fusion.caption_weight are both 0; one of them must be above."
        layers, n_uni, heads, D = language.layers, fusion.n_uni, fusion.pooler_heads, language.width
        if layers < 2:
            yield f"fusion=coca needs a language model of at least 2 blocks, one per half; this has {layers}."
        if n_uni is not None and n_uni >= layers:
            yield f"fusion.n_uni={n_uni} leaves no block for the upper half: the language model has {layers}."
        if D % heads:
            yield f"fusion.pooler_heads={heads} must divide the language model's width {D}."

    # -------------------------------------------------------------------------------------------------- the picture
    def encode(self, lm: Language, visual: Visual, aux: Aux | None = None) -> Memory:
        X_INC = visual.tokens_INC
        bias = key_bias(visual.valid_IN, X_INC.dtype)
        U_InD = self.pooler(X_INC, bias, aux)
        x_IE = self.contrast.picture(U_InD) if self.cascade else self.contrast.picture(X_INC, bias)
        memory, U_InD = Memory(contrastive=x_IE), self.norm_u(U_InD)
        for i, cross in enumerate(self.cross):
            memory[f"k{i}"], memory[f"v{i}"] = cross.keys_values(U_InD)  # (I, H, n, d) each
        return memory

    # ----------------------------------------------------------------------------------------------------- the text
    def decode(
        self, lm: Language, memory: Memory, text: Text, cache: Cache | None = None, aux: Aux | None = None
    ) -> Tensor:
        h_BTD, walk = lm.begin(lm.embed(text.ids_BT), text, cache)
        t_BTD = self._lower(lm, h_BTD, walk)
        return self._upper(lm, t_BTD, walk, memory, aux)

    def learn(self, lm: Language, memory: Memory, text: Text) -> tuple[Tensor, Terms]:
        """The lower half runs once, for captions and for CLS; one more column costs less than a pass of its own."""
        if self.contrastive_weight == 0:
            return super().learn(lm, memory, text)
        t_BTD, cls_BD = self._tokens_and_cls(lm, text)
        x_IE = memory["contrastive"]
        term = self.contrast.loss(x_IE, self.contrast.text(cls_BD[:: len(cls_BD) // len(x_IE)]))
        walk = lm.walk(text.columns(None, -1), t_BTD.dtype)  # nothing is asked of the last column, nor of CLS
        hidden_BTD = F.pad(self._upper(lm, t_BTD[:, :-1], walk, memory), (0, 0, 0, 1))
        return hidden_BTD, {"contrastive": (term, self.contrastive_weight)}

    def _tokens_and_cls(self, lm: Language, text: Text) -> tuple[Tensor, Tensor]:
        """Lower half on [tokens ; CLS]: (B, T, D) and (B, D). Of several texts in a row CLS belongs to the first."""
        tokens_BTD = lm.embed(text.ids_BT)
        cls_B1D = self.contrast.cls_D.expand(len(tokens_BTD), 1, -1)
        # CLS stands behind the padding of shorter texts. Such rows are ragged: a mask hides padding from CLS, and CLS
        # gets the position after the last real token.
        read = Text(
            F.pad(text.ids_BT, (0, 1)),
            F.pad(text.valid_BT, (0, 1), value=True),
            F.pad(text.phi_BT, (0, 1)),
            ragged=True,
            open_BT=None if text.open_BT is None else F.pad(text.open_BT, (0, 1), value=False),
            segment_BT=None if text.segment_BT is None else F.pad(text.segment_BT, (0, 1), value=1),
        )
        h_BSD, walk = lm.begin(torch.cat([tokens_BTD, cls_B1D], dim=1), read)
        h_BSD = self._lower(lm, h_BSD, walk)
        return h_BSD[:, :-1], h_BSD[:, -1]

    def _lower(self, lm: Language, h_BTD: Tensor, walk: Walk) -> Tensor:
        for block in lm.blocks()[: self.n_uni]:
            h_BTD = block.feed(block.attend(h_BTD, walk))
        return h_BTD

    def _upper(self, lm: Language, t_BTD: Tensor, walk: Walk, memory: Memory, aux: Aux | None = None) -> Tensor:
        for i, block in enumerate(lm.blocks()[self.n_uni :]):
            read: Aux | None = None if aux is None else {}
            a_BTD = block.attend(t_BTD, walk)
            c_BTD = self.cross[i](self.norms[i](a_BTD), memory[f"k{i}"], memory[f"v{i}"], aux=read)
            u_BTD = a_BTD + self.drop(c_BTD)
            t_BTD = block.feed(u_BTD)
            if read is not None:
                _note_attention(aux, read["attention"][0])
        return lm.final_norm(t_BTD)

    # ---------------------------------------------------------------------------------------------------- retrieval
    def embed_pictures(self, memory: Memory) -> Tensor:
        return memory["contrastive"]

    def scale(self) -> Tensor:
        return self.contrast.scale()

    def embed_texts(self, lm: Language, text: Text) -> Tensor:
        return self.contrast.text(self._tokens_and_cls(lm, text)[1])

    def scalars(self) -> dict[str, float]:
        return {"temperature": self.contrast.log_temperature.exp().item()}


def _note_attention(aux: Aux | None, read_BHTn: Tensor) -> None:
    """Weights of words over queries; over visual tokens (B, H, T, N) where the same ``aux`` holds the pooler's."""
    pooled_InN = noted(aux, "pooler")
    if pooled_InN is None:
        note(aux, "latent_attention", read_BHTn)
        return
    G = len(read_BHTn) // len(pooled_InN)
    note(aux, "attention", read_BHTn @ pooled_InN.repeat_interleave(G, 0)[:, None])
