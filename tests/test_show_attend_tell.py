"""Show, Attend and Tell against loops written from its formulas, and what holds of word after word alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import VISION, Characters, make_fusion, make_language, make_text, make_visual, make_words
from test_captioner import make_batch, make_captioner
from test_rows import captions
from torch import nn

from src.build import rows_for
from src.contracts import Target, Text, UserError, View, Visual
from src.decoding.beam import BeamSearch
from src.decoding.contrastive import ContrastiveSearch
from src.decoding.sample import Sample
from src.fusion.show_attend_tell import ShowAttendTell, uncovered
from src.language.load import words
from src.layers.cache import Cache
from src.loading.rows import Rows

EXACT = {"rtol": 0, "atol": 1e-12}
SCORES, QUERIES = ("additive", "dot", "scaled_dot"), ("previous", "current")
FORMS = [(score, query) for score in SCORES for query in QUERIES]


def make(*overrides: str):
    language = make_words()
    return make_fusion("show_attend_tell", language, *overrides), language


def form(score: str, query: str):
    return make(f"fusion.score={score}", f"fusion.query={query}", "fusion.width=20", "fusion.attention_width=12")


def walked(fusion, language, visual, text, aux=None):
    memory = fusion.encode(language, visual)
    return fusion.readout(language, fusion.decode(language, memory, text, aux=aux))


def by_hand(fusion, language, a_NC, ids, score, query):
    """Logits (T, V) and alpha (T, N) of one text, by nn.LSTMCell and the paper's equations, word after word."""
    E, T_state = fusion.L_h.in_features, fusion.T_state.weight
    D, C = language.spec.width, a_NC.shape[1]
    cell = nn.LSTMCell(D + (C if query == "previous" else 0), E).double()
    with torch.no_grad():
        cell.weight_ih.copy_(torch.cat([fusion.T_word.weight, T_state[:, E:]], 1))
        cell.weight_hh.copy_(T_state[:, :E])
        cell.bias_ih.copy_(fusion.T_word.bias)
        cell.bias_hh.zero_()
    W_a, W_h, b = fusion.attention.k.weight, fusion.attention.q.weight, fusion.attention.q.bias

    def read(h):
        if score == "additive":
            e = torch.stack([fusion.attention.w.weight[0] @ torch.tanh(W_a @ a + W_h @ h + b) for a in a_NC])
        else:
            e = torch.stack([(W_a @ a) @ (W_h @ h + b) for a in a_NC])
            e = e / len(b) ** 0.5 if score == "scaled_dot" else e
        alpha = e.exp() / e.exp().sum()
        beta = torch.sigmoid(fusion.beta.weight[0] @ h + fusion.beta.bias[0])
        return beta * sum(alpha[i] * a_NC[i] for i in range(len(a_NC))), alpha

    h, c = torch.tanh(fusion.start.weight @ a_NC.mean(0) + fusion.start.bias).split(E)
    logits, alphas = [], []
    for id in ids:
        word = language.model.embed_tokens.weight[id]
        if query == "previous":
            z, alpha = read(h)
            h, c = (x[0] for x in cell(torch.cat([word, z])[None], (h[None], c[None])))
        else:
            h, c = (x[0] for x in cell(word[None], (h[None], c[None])))
            z, alpha = read(h)
        logits.append(language.model.lm_head.weight @ (word + fusion.L_h.weight @ h + fusion.L_z.weight @ z))
        alphas.append(alpha)
    return torch.stack(logits), torch.stack(alphas)


@pytest.mark.parametrize(("score", "query"), FORMS)
@torch.no_grad()
def test_equals_a_loop_over_an_lstm_cell(score, query):
    (fusion, language), visual, text, aux = form(score, query), make_visual(2), make_text(4, 7), {}
    found = walked(fusion, language, visual, text, aux)
    for row in range(4):
        a_NC = visual.tokens_IMNC[row // 2, 0]
        logits, alpha = by_hand(fusion, language, a_NC, text.ids_BT[row], score, query)
        torch.testing.assert_close(found[row], logits, **EXACT)
        torch.testing.assert_close(aux["attention"][0][row, 0], alpha, **EXACT)


@pytest.mark.parametrize(("score", "scale"), [("dot", 1.0), ("scaled_dot", None)])
@torch.no_grad()
def test_products_are_torchs_attention(score, scale):
    attention, h_BE, a_INC = (
        form(score, "previous")[0].attention,
        torch.randn(6, 20).double(),
        make_visual(2).tokens_INC,
    )
    k_INA, v_INC = attention.keys_values(a_INC)
    read_BC, _ = attention(h_BE, k_INA, v_INC, None)
    wanted = F.scaled_dot_product_attention(attention.q(h_BE).view(2, 3, -1), k_INA, v_INC, scale=scale)
    torch.testing.assert_close(read_BC, wanted.flatten(0, 1), **EXACT)


@pytest.mark.parametrize(("score", "query"), FORMS)
@torch.no_grad()
def test_weights_sum_to_one_follow_their_regions_and_are_even_on_equal_ones(score, query):
    (fusion, language), visual, text = form(score, query), make_visual(2), make_text(4, 6)
    aux, moved, same = {}, {}, {}
    logits = walked(fusion, language, visual, text, aux)
    alpha = aux["attention"][0]
    torch.testing.assert_close(alpha.sum(-1), torch.ones(4, 1, 6).double(), **EXACT)
    assert alpha.std(-1).min() > 1e-4  # else nothing below would tell anything
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    permuted = replace(visual, tokens_IMNC=visual.tokens_IMNC[:, :, order])
    torch.testing.assert_close(walked(fusion, language, permuted, text, moved), logits, **EXACT)
    torch.testing.assert_close(moved["attention"][0], alpha[..., order], **EXACT)
    alike = replace(visual, tokens_IMNC=visual.tokens_IMNC[:, :, :1].expand(-1, -1, 6, -1))
    walked(fusion, language, alike, text, same)
    torch.testing.assert_close(same["attention"][0], torch.full((4, 1, 6, 6), 1 / 6, dtype=torch.float64), **EXACT)


@pytest.mark.parametrize(("score", "query"), FORMS)
@torch.no_grad()
def test_the_state_follows_beams_and_a_prompt_that_came_in_pieces(score, query):
    """Padding on the left over several columns, cut in the middle of it, then rows repeated and reordered."""
    (fusion, language), visual = form(score, query), make_visual(2)
    prompts, more = [[0, 9, 8, 7], [0, 5]], torch.tensor([[11, 12], [13, 14], [15, 16], [17, 18]])
    ids = torch.tensor([prompts[0], [2, 2, *prompts[1]]])
    text = Text(ids, valid := ids != 2, valid.long(), ragged=True)
    memory, cache = fusion.encode(language, visual), Cache(2, 8)
    for first, last in ((0, 1), (1, 3), (3, 4)):
        fusion.decode(language, memory, text.columns(first, last), cache)
    cache.repeat(2)
    cache.select(torch.tensor([1, 0, 3, 3]))
    for column in more.T:
        step = Text(column[:, None], torch.ones(4, 1, dtype=torch.bool), torch.ones(4, 1, dtype=torch.long))
        hidden = fusion.decode(language, memory, step, cache)
    for row in range(4):
        alone = Visual(visual.tokens_IMNC[row // 2 :][:1], visual.pooled_IMC[row // 2 :][:1])
        whole = torch.tensor([[*prompts[row // 2], *more[row].tolist()]])
        text = Text(whole, torch.ones_like(whole, dtype=torch.bool), torch.ones_like(whole))
        wanted = fusion.decode(language, fusion.encode(language, alone), text)
        torch.testing.assert_close(hidden[row, 0], wanted[0, -1], **EXACT)


def test_no_word_reaches_back():
    """Gradients of what stands before a word do not see it, nor another text of the same row."""
    fusion, language = make()
    text, memory = make_text(1, 6), fusion.encode(language, make_visual(1))
    text.segment_BT = torch.tensor([[1, 1, 1, 2, 2, 2]])
    given = {}
    embed = language.embed
    language.embed = lambda ids: given.setdefault("x", embed(ids).detach().requires_grad_())
    hidden = fusion.decode(language, memory, text)
    reached = torch.stack([torch.autograd.grad(h.sum(), given["x"], retain_graph=True)[0] for h in hidden[0]])
    seen = reached[:, 0].abs().sum(-1) > 0  # (6, 6): of hidden state and word
    part = torch.ones(3, 3, dtype=torch.bool).tril()
    assert torch.equal(seen, torch.block_diag(part, part).bool())


@torch.no_grad()
def test_rows_come_back_in_the_order_in_which_they_went_in():
    """Long and short texts mixed: nothing is sorted by length, as tutorials do."""
    fusion, language = make()
    text, visual = captions(), make_visual(2)
    memory = fusion.encode(language, visual)
    found = fusion.decode(language, memory, text)
    order = torch.tensor([7, 5, 9, 6, 8, 0, 3, 1, 4, 2])
    shuffled = Text(text.ids_BT[order], text.valid_BT[order], text.phi_BT[order])
    swapped = memory.select(torch.tensor([1, 0]))
    torch.testing.assert_close(fusion.decode(language, swapped, shuffled), found[order], **EXACT)


# ------------------------------------------------------------------------------------------------- the term
def term_by_hand(alpha_BTN, lengths, regions):
    """Text after text: of n tokens n - 1 are asked for, and so many columns look."""
    gaps = []
    for row, length in enumerate(lengths):
        own = alpha_BTN[row, : length - 1, : regions[row // 5]]
        gaps.append(((1 - own.sum(0)) ** 2).mean())
    return sum(gaps) / len(gaps)


@pytest.mark.parametrize("pack", [False, True])
def test_the_doubly_stochastic_term_is_its_formula_without_padding(pack):
    """Of ends, padding and regions that are none nothing is counted; texts in one row count as they do alone."""
    fusion, language = make("fusion.doubly_stochastic=0.7")
    lengths, text, visual = (9, 4, 6, 3, 7, 7, 5, 9, 8, 4), captions(), make_visual(2)
    visual.token_valid_IMN = torch.tensor([[[True] * 6], [[True] * 4 + [False] * 2]])
    memory, aux = fusion.encode(language, visual), {}
    fusion.decode(language, memory, text, aux=aux)
    wanted = term_by_hand(aux["attention"][0][:, 0], lengths, (6, 4))
    view = Rows(pack, ends=True).lay(View(text, Target.next(text)), 2)
    assert len(view.text.ids_BT) == (2 if pack else 10)
    hidden_BTD, terms = fusion.learn(language, memory, view.text)
    value, weight = terms["doubly_stochastic"]
    torch.testing.assert_close(value, wanted, **EXACT)
    assert weight == 0.7 and hidden_BTD.shape[:2] == view.text.ids_BT.shape
    assert make("fusion.doubly_stochastic=0")[0].learn(language, memory, text)[1] == {}


def test_the_term_is_least_where_every_region_is_looked_at_once():
    text = make_text(1, 5)  # four words to come
    even = torch.full((1, 5, 4), 0.25)
    assert uncovered(even, text, None).item() == pytest.approx(0, abs=1e-12)
    stuck = torch.eye(4)[torch.zeros(5, dtype=torch.long)][None]
    assert uncovered(stuck, text, None).item() == pytest.approx((9 + 3) / 4)


def test_the_term_pulls_weights_apart_in_time():
    """Its gradient reaches what asks, and training on it alone lowers it."""
    fusion, language = make()
    fusion.train()
    text, visual = make_text(4, 8), make_visual(2)
    optimizer, values = torch.optim.Adam(fusion.parameters(), 0.01), []
    for _ in range(30):
        _, terms = fusion.learn(language, fusion.encode(language, visual), text)
        values.append(terms["doubly_stochastic"][0])
        optimizer.zero_grad()
        values[-1].backward()
        optimizer.step()
    assert values[-1] < 0.8 * values[0]


# ------------------------------------------------------------------------------------------------- in its place
@pytest.mark.parametrize(
    "decoder",
    [
        BeamSearch(8, 3, length_penalty=1.0),
        Sample(8, 1.0, top_k=1, top_p=1.0, seed=0),
        ContrastiveSearch(8, candidates=3, penalty=0.6),
    ],
)
def test_every_decoder_says_of_a_picture_what_it_says_of_it_alone(decoder):
    model, batch = make_captioner("show_attend_tell").eval(), make_batch(contexts=4, rows=4)
    together = model.generate(batch, decoder)
    alone = [model.generate(replace(batch, ids=[id], pixels_IM3hw=batch.pixels_IM3hw[[i]]), decoder)[0]
             for i, id in enumerate(batch.ids)]  # fmt: skip
    assert alone == together and any(together)


def test_texts_of_a_picture_stand_in_rows_of_their_own():
    fusion, _ = make()
    assert rows_for(fusion, pack=True) == Rows(pack=False, ends=True)


def test_it_does_without_blocks_and_says_so():
    language, options = make_language(), {"query": "previous", "width": None, "attention_width": None}
    with pytest.raises(UserError, match="would leave out the 3 blocks of this language model"):
        ShowAttendTell(VISION, language.spec, score="dot", doubly_stochastic=1.0, dropout=0.0, **options)
    with pytest.raises(UserError, match="works by a language model's blocks, and this one has none"):
        make_fusion("cross_attention", make_words())


def test_word_vectors_start_small_and_are_not_tied():
    language = words(Characters(), width=16)
    embedding, output = language.model.embed_tokens.weight, language.unembedding()
    for matrix in (embedding, output):
        assert matrix.shape == (131, 16) and 0.09 < matrix.abs().max() <= 0.1 and abs(matrix.mean()) < 0.01
    assert not torch.equal(embedding, output) and language.blocks() == [] and language.spec.layers == 0
