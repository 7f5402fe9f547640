"""Show, Attend and Tell: an LSTM that looks at the picture anew before every word, in place of blocks (slots E, F).

Xu et al. 2015, "Show, Attend and Tell: Neural Image Caption Generation with Visual Attention", ICML, arXiv 1502.03044,
sections 3.1.2 and 4.2.1, soft attention. Letters beside those of contracts.py: E width of the LSTM, A of attention.

    h_0, c_0    = tanh(W mean_i a_i)                                    a: visual tokens (I, N, C)
    e_ti        = w^T tanh(W_a a_i + W_h h_{t-1})                       score: additive; others: layers/soft_attention
    alpha_t     = softmax(e_t)
    z_t         = beta_t sum_i alpha_ti a_i                             beta_t = sigma(W_beta h_{t-1}), one number
    i, f, g, o  = T [E y_{t-1} ; h_{t-1} ; z_t]                         (B, 4 E)
    c_t         = sigma(f) c_{t-1} + sigma(i) tanh(g)
    h_t         = sigma(o) tanh(c_t)
    logits      = L_o (E y_{t-1} + L_h h_t + L_z z_t)                   E, L_o: input and output of language=words

    loss        + lambda mean_i (1 - sum_t alpha_ti)^2                  "doubly stochastic": no region is left out

    query: current      alpha_t and beta_t are asked by h_t, and z_t goes to the output alone (Luong et al. 2015, arXiv
                        1508.04025, without input feeding); the LSTM knows the picture by h_0 and c_0

Departures
    lambda      weighs a mean over regions beside a mean over words, as public codes have it; the paper sums both
    output      the authors' code puts a tanh around the sum in front of L_o; here the paper's equation 7
    W           h_0 and c_0 by one layer each, as in the authors' code; the paper has "separate MLPs"
    dropout     on h_t and in front of L_o, where the authors' code has it; the rate of all mechanisms
    padding     on the left leaves the state as it is, so that a prompt is read as it is alone
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from src.contracts import Language, LanguageSpec, Memory, Text, VisionSpec, Visual
from src.fusion.base import Terms, Writer, gpt2_init
from src.kinds import BelowOne, Rate, Size
from src.layers.attention import key_bias
from src.layers.cache import Cache
from src.layers.dropout import Dropout
from src.layers.notes import Aux, note
from src.layers.soft_attention import Opening, SoftAttention

STATE = "lstm"  # under which h and c are kept between steps


class ShowAttendTell(Writer):
    """``width``: E, None for the language model's; ``attention_width``: A, None for E; ``doubly_stochastic``: lambda.

    A text's state begins at its picture's, wherever in its row the text stands.
    """

    where = "E+F"
    needs_blocks = False
    packs = False
    reads_ends = True

    def __init__(
        self,
        vision: VisionSpec,
        language: LanguageSpec,
        score: Literal["additive", "dot", "scaled_dot"],
        query: Literal["previous", "current"],
        width: Size | None,
        attention_width: Size | None,
        doubly_stochastic: Rate,
        dropout: BelowOne,
    ):
        super().__init__(vision, language)
        C, D, E = vision.width, language.width, width or language.width
        self.asks_first, self.doubly_stochastic = query == "previous", doubly_stochastic
        self.start = nn.Linear(C, 2 * E)  # W of h_0, then of c_0
        self.begin = Opening()
        self.attention = SoftAttention(E, C, attention_width or E, score)
        self.beta = nn.Linear(E, 1)
        # T in two parts, as all words of a text are known at once; gates in the order of nn.LSTMCell: i, f, g, o
        self.T_word = nn.Linear(D, 4 * E)
        self.T_state = nn.Linear(E + C if self.asks_first else E, 4 * E, bias=False)
        self.L_h, self.L_z = nn.Linear(E, D, bias=False), nn.Linear(C, D, bias=False)
        self.drop = Dropout(dropout)
        gpt2_init(self)

    @staticmethod
    def refusals(language):
        if language.layers > 0:
            yield (
                f"fusion=show_attend_tell would leave out the {language.layers} blocks of this language model; "
                "leave language= out, language=words has none."
            )

    def encode(self, lm: Language, visual: Visual, aux: Aux | None = None) -> Memory:
        a_INC, valid_IN = visual.tokens_INC, visual.valid_IN
        real_IN1 = (a_INC.new_ones(a_INC.shape[:2]) if valid_IN is None else valid_IN.to(a_INC.dtype))[:, :, None]
        mean_IC = (a_INC * real_IN1).sum(1) / real_IN1.sum(1).clamp_min(1)
        k_INA, v_INC = self.attention.keys_values(a_INC)
        start_IE = torch.tanh(self.start(mean_IC)).to(a_INC.dtype)  # E = 2 E: sums over time stay in full precision
        bias = key_bias(valid_IN, k_INA.dtype)
        return Memory.of(start=start_IE, k=k_INA, v=v_INC, valid=valid_IN, bias=None if bias is None else bias[:, 0])

    def decode(
        self, lm: Language, memory: Memory, text: Text, cache: Cache | None = None, aux: Aux | None = None
    ) -> Tensor:
        """Hidden states (B, T, D). ``aux`` gets "attention": alpha, (B, 1, T, N); "visual_gate": beta, (B, 1, T, 1)."""
        goes_on = cache is not None and cache.length > 0
        e_BTD, _ = lm.begin(lm.embed(text.ids_BT), text, cache)
        start = self.begin(memory["start"].repeat_interleave(len(e_BTD) // len(memory["start"]), 0)).chunk(2, 1)
        state = cache.kept(STATE) if cache is not None and goes_on else start
        made, last = self._recur(self.T_word(e_BTD), state, start, text, memory)  # pyright: ignore[reportCallIssue]
        h_BTE, z_BTC, alpha_BTN, beta_BT1 = made
        if cache is not None:
            cache.keep(STATE, *last)
        note(aux, "attention", alpha_BTN[:, None])
        note(aux, "visual_gate", beta_BT1[:, None])
        return self.drop(e_BTD + self.L_h(self.drop(h_BTE)) + self.L_z(z_BTC))

    def learn(self, lm: Language, memory: Memory, text: Text) -> tuple[Tensor, Terms]:
        if self.doubly_stochastic == 0:
            return super().learn(lm, memory, text)
        aux: Aux = {}
        hidden_BTD = self.decode(lm, memory, text, aux=aux)
        term = uncovered(aux["attention"][0][:, 0], text, memory.get("valid"))
        return hidden_BTD, {"doubly_stochastic": (term, self.doubly_stochastic)}

    @torch.compiler.disable  # unrolled, it would be compiled anew for every length
    def _recur(
        self, words: Tensor, state: tuple[Tensor, ...], start: tuple[Tensor, ...], text: Text, memory: Memory
    ) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
        """Word after word: h, z, alpha and beta of all of them, (B, T, .), and the last h and c.

        ``words``: their part of the gates, (B, T, 4 E).
        """
        h_BE, c_BE = state
        begins = text.starts().unsqueeze(-1).unbind(1) if text.segment_BT is not None else None
        real = text.valid_BT.unsqueeze(-1).unbind(1) if text.ragged else None
        steps: list[tuple[Tensor, ...]] = []
        for t, word in enumerate(words.unbind(1)):
            if begins is not None:
                h_BE, c_BE = (torch.where(begins[t], *pair) for pair in zip(start, (h_BE, c_BE), strict=True))
            before = h_BE, c_BE
            if self.asks_first:
                read = self._read(h_BE, memory)
                h_BE, c_BE = lstm(word + self.T_state(torch.cat([h_BE, read[0]], 1)), c_BE)
            else:
                h_BE, c_BE = lstm(word + self.T_state(h_BE), c_BE)
                read = self._read(h_BE, memory)
            if real is not None:
                h_BE, c_BE = (torch.where(real[t], *pair) for pair in zip((h_BE, c_BE), before, strict=True))
            steps.append((h_BE, *read))
        return [torch.stack(made, 1) for made in zip(*steps, strict=True)], (h_BE, c_BE)

    def _read(self, h_BE: Tensor, memory: Memory) -> tuple[Tensor, Tensor, Tensor]:
        """z, (B, C), alpha, (B, N), and beta, (B, 1)."""
        beta_B1 = torch.sigmoid(self.beta(h_BE))
        read_BC, alpha_BN = self.attention(h_BE, memory["k"], memory["v"], memory.get("bias"))
        return beta_B1 * read_BC, alpha_BN, beta_B1


def lstm(gates: Tensor, c_BE: Tensor) -> tuple[Tensor, Tensor]:
    """h and c behind one word, (B, E) each. ``gates``: i, f, g and o before their nonlinearities, (B, 4 E)."""
    i_BE, f_BE, g_BE, o_BE = gates.chunk(4, 1)
    c_BE = torch.sigmoid(f_BE) * c_BE + torch.sigmoid(i_BE) * torch.tanh(g_BE)
    return torch.sigmoid(o_BE) * torch.tanh(c_BE), c_BE


def uncovered(alpha_BTN: Tensor, text: Text, valid_IN: Tensor | None) -> Tensor:
    """mean_i (1 - sum_t alpha_ti)^2 over a text's words to come and a picture's real regions; mean over texts."""
    asked_BT = text.asked()
    each_BTS = asked_BT[:, :, None]  # S: texts of a row
    if text.segment_BT is not None:
        numbers_S = torch.arange(1, int(text.segment_BT.max()) + 1, device=asked_BT.device)
        each_BTS = each_BTS & (text.segment_BT[:, :, None] == numbers_S)
    sum_BSN = each_BTS.to(alpha_BTN.dtype).transpose(1, 2) @ alpha_BTN
    gap_BSN = (1 - sum_BSN).square()
    if valid_IN is None:
        gap_BS = gap_BSN.mean(-1)
    else:
        real_B1N = valid_IN.repeat_interleave(len(gap_BSN) // len(valid_IN), 0)[:, None].to(gap_BSN.dtype)
        gap_BS = (gap_BSN * real_B1N).sum(-1) / real_B1N.sum(-1).clamp_min(1)
    there_BS = each_BTS.any(1)
    return (gap_BS * there_BS).sum() / there_BS.sum().clamp_min(1)
