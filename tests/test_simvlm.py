"""SimVLM: picture and a beginning of the text read both ways, texts without pictures beside, and hidden spans."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from conftest import VISION, Characters, make_fusion, make_language, make_text, make_visual
from hypothesis import given, settings
from hypothesis import strategies as st
from test_captioner import make_captioner
from test_reading import Told, parts_of
from torch.nn import functional as F
from transformers.masking_utils import create_causal_mask

from src.contracts import Batch, Target, Text, UserError
from src.loading.batches import CaptionBatches
from src.loading.rows import APART, with_views
from src.objectives.base import Surroundings
from src.objectives.next_token import NextToken
from src.objectives.prefix_lm import PrefixLM
from src.objectives.span_corruption import SpanCorruption, spans
from src.tasks.base import split_loss

EXACT = {"rtol": 0, "atol": 1e-10}
N = VISION.tokens


def draws(row: int) -> random.Random:
    return random.Random(f"7/{row}")


def parts():
    language = make_language()
    return make_fusion("simvlm", language), language


def prefix_view(rows: int = 6, length: int = 9):
    text = make_text(rows, length)
    text.valid_BT[-1, -3:] = False
    return PrefixLM().view(Batch([str(b) for b in range(rows)], text), draws)


def states(fusion, language, visual, text):
    return fusion.decode(language, fusion.encode(language, visual), text)


# -------------------------------------------------------------------------------------------------------- who sees whom
@torch.no_grad()
def test_equal_to_gpt2_under_paligemmas_mask_row_by_row():
    """transformers' GPT-2 over the same vectors, masked as its PaliGemma masks picture and prefix."""
    fusion, language = parts()
    view, visual = prefix_view(), make_visual(6)
    assert len(set(view.text.open_BT.sum(1).tolist())) > 2  # beginnings of several lengths in a batch
    memory = fusion.encode(language, visual)
    inputs = torch.cat([memory["prefix"], language.embed(view.text.ids_BT)], 1)
    config = language.model.config
    config._attn_implementation = "eager"
    open_BS, valid_BS = (F.pad(x, (N, 0), value=True) for x in (view.text.open_BT, view.text.valid_BT))
    mask = create_causal_mask(
        config, inputs, valid_BS.long(), None, block_sequence_ids=torch.where(open_BS & valid_BS, 0, -1)
    )
    peer = language.model(inputs_embeds=inputs, attention_mask=mask).logits[:, N:]
    ours = fusion.readout(language, fusion.decode(language, memory, view.text))
    real = view.text.valid_BT
    torch.testing.assert_close(ours[real], peer[real], **EXACT)
    nats = 0.0
    for b in range(6):  # the formula: token t > r of row b, from the column before it
        r, n = max(1, int(view.text.open_BT[b].sum())), int(real[b].sum())
        nats -= float(peer[b].log_softmax(-1)[range(r - 1, n - 1), view.text.ids_BT[b, r:n]].sum())
    want = F.cross_entropy(ours.flatten(0, 1)[view.target.at_X], view.target.id_X, reduction="sum")
    assert float(want) == pytest.approx(nats, rel=1e-9)


@torch.no_grad()
def test_a_prefix_sees_all_of_itself_and_nothing_behind():
    fusion, language = parts()
    text = make_text(1, 9)
    text.open_BT = torch.arange(9)[None] < 4
    visual, before = make_visual(1), None
    before = states(fusion, language, visual, text)

    def moved(t: int) -> list[bool]:
        other = replace(text, ids_BT=text.ids_BT.clone())
        other.ids_BT[0, t] = 5 + (other.ids_BT[0, t] == 5)
        return ((states(fusion, language, visual, other) - before)[0].abs().amax(-1) > 1e-9).tolist()

    assert moved(3) == [True] * 9  # the last of the prefix reaches its first column
    for t in range(4, 9):
        assert moved(t) == [False] * t + [True] * (9 - t)
    one = replace(visual, tokens_IMNC=visual.tokens_IMNC.clone())
    one.tokens_IMNC[0, 0, -1] += torch.randn(VISION.width)
    assert ((states(fusion, language, one, text) - before).abs().amax(-1) > 1e-9).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(0, 3), st.integers(0, 999))
def test_every_split_leaves_something_to_learn_where_there_is_anything(lengths, given_tokens, seed):
    """Whatever the lengths, and whatever part of a row is given (a question) and not learnt."""
    valid_BT = torch.arange(12) < torch.tensor(lengths)[:, None]
    target_BT = valid_BT & (torch.arange(12) >= given_tokens)
    text = Text(torch.full_like(valid_BT, 7, dtype=torch.long), valid_BT, valid_BT.long(), target_BT=target_BT)
    batch = Batch([str(b) for b in range(len(lengths))], text)
    view = PrefixLM().view(batch, lambda row: random.Random(f"{seed}/{row}"))
    rows = (view.target.at_X // 12).bincount(minlength=len(lengths))
    for b, length in enumerate(lengths):
        learnable = int(target_BT[b, 1:].sum())  # nothing stands before the first column
        r = max(1, int(view.text.open_BT[b].sum()))
        assert (rows[b] >= 1) == (learnable >= 1)
        assert rows[b] == max(0, length - max(r, given_tokens)) if learnable else rows[b] == 0


# ----------------------------------------------------------------------------------------------- texts without pictures
def text_batch(image_size: int | None, objectives) -> Batch:
    """As a loader makes it of a data set without pictures, beside somebody who sees or not."""
    source = Told()
    examples = source.examples("test")
    made = CaptionBatches(examples, source, Characters(), 1, 20, 0, image_size, None, False, objectives, APART)
    return made._batch(0, [0, 1, 2, 3])


@pytest.mark.parametrize("name", ["simvlm", "cross_attention", "srau", "vcgpt", "flamingo", "clipcap", "coca"])
def test_texts_without_pictures_teach_what_sees(name):
    """Beside a batch of pictures: the encoder learns nothing of them, the words do."""
    model = make_captioner(name).train()
    model.objectives = {"prefix_lm": PrefixLM()}
    batch = text_batch(12, model.objectives)
    assert batch.image_valid_IM.shape == (4, 0)
    model.total(batch, model.losses(batch)).backward()
    assert all(p.grad is None or not p.grad.any() for p in model.vision.parameters())
    assert model.language.model.transformer.wte.weight.grad.abs().max() > 0


@torch.no_grad()
def test_a_text_without_a_picture_is_a_prefix_language_models():
    """T_i = 0: the language model alone, masked by the split; and the plain one where nothing is split."""
    model = make_captioner("simvlm").eval()
    model.objectives = {"prefix_lm": PrefixLM(), "next_token": NextToken()}
    batch = text_batch(12, model.objectives)
    losses = model.losses(batch)
    for name in model.objectives:
        view = batch.views[name]
        logits = model.language.unembed(model.language.hidden(view.text)).flatten(0, 1)
        want = F.cross_entropy(logits[view.target.at_X], view.target.id_X)
        torch.testing.assert_close(losses[name].mean, want, **EXACT)


def test_texts_are_scored_beside_pictures():
    """By who sees, in front of whose words nothing stands then, as by the plain language model."""
    losses = [split_loss(parts_of(make_captioner(name), Told()), "test") for name in ("simvlm", "blind")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


def test_who_does_not_see_reads_texts_as_before():
    assert text_batch(None, {"next_token": NextToken()}).image_valid_IM is None


# --------------------------------------------------------------------------------------------------------- hidden spans
def around(mask: int | None = Characters.mask) -> Surroundings:
    return Surroundings(VISION, replace(make_language().spec, mask=mask), tuple)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 60), st.floats(0.05, 0.9), st.floats(1, 6), st.integers(0, 999))
def test_spans_hide_so_many_words_and_do_not_touch(words, rate, length, seed):
    hidden, many = SpanCorruption(rate=rate, length=length)._spans(words)
    found = spans(words, hidden, many, random.Random(seed))
    assert len(found) == many and sum(last - first for first, last in found) == hidden
    edges = [place for span in found for place in span]
    assert edges == sorted(edges) and 0 <= edges[0] and edges[-1] <= words
    assert all(second[0] > first[1] for first, second in pairwise(found))


@pytest.mark.parametrize("asked", [0, 4])
def test_what_is_hidden_is_told_behind_and_gives_the_text_again(asked):
    objective = SpanCorruption(rate=0.4, length=2.0).fitted(around())
    text = make_text(5, 14)
    text.ids_BT[:, -1] = Characters.eos
    text.ids_BT[text.ids_BT == Characters.mask] = 9
    text.valid_BT[-1, -1] = False  # one that was cut, and has no end
    if asked:
        text.target_BT = text.valid_BT & (torch.arange(14) >= asked)
    view = objective.view(Batch(list("abcde"), text), draws)
    assert view.text.ids_BT.shape[1] <= 14 + objective.longer(14)
    for b in range(5):
        ids = view.text.ids_BT[b, view.text.valid_BT[b]].tolist()
        r = int(view.text.open_BT[b].sum())
        front, back = ids[:r], ids[r:]
        assert view.text.ids_BT[b, : max(1, asked)].tolist() == text.ids_BT[b, : max(1, asked)].tolist()
        pieces: list[list[int]] = []
        for id in back:  # each span behind its mask
            if id == Characters.mask:
                pieces.append([])
            elif id != Characters.eos:
                pieces[-1].append(id)
        if b < 4:
            assert back[-1] == Characters.eos and Characters.eos not in front
        left = iter(pieces)
        again = [id for one in front for id in (next(left) if one == Characters.mask else [one])]
        whole = text.ids_BT[b, text.valid_BT[b]].tolist()
        assert again == [id for id in whole if id != Characters.eos] and next(left, None) is None
        asked_of = view.target.at_X[view.target.at_X // view.text.ids_BT.shape[1] == b] % view.text.ids_BT.shape[1]
        assert asked_of.tolist() == list(range(r - 1, len(ids) - 1))
    assert torch.equal(view.target.id_X, Target.next(view.text).id_X)


@torch.no_grad()
def test_what_is_told_is_not_seen_by_what_is_left():
    fusion, language = parts()
    view = SpanCorruption().fitted(around()).view(Batch(["a"], make_text(1, 12)), draws)
    r, other = int(view.text.open_BT.sum()), replace(view.text, ids_BT=view.text.ids_BT.clone())
    other.ids_BT[0, r + 1 :] = 11
    visual = make_visual(1)
    one, two = states(fusion, language, visual, view.text), states(fusion, language, visual, other)
    torch.testing.assert_close(one[:, : r + 1], two[:, : r + 1], rtol=0, atol=0)
    assert (one[:, r + 1 :] - two[:, r + 1 :]).abs().max() > 1e-6


def test_spans_need_a_token_that_hides_words_and_texts_may_be_empty():
    with pytest.raises(UserError, match=r"language\.tokenizer\.mask=true"):
        SpanCorruption().fitted(around(mask=None))
    empty = Text(torch.tensor([[0, 1]]), torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 2, dtype=torch.long))
    view = SpanCorruption().fitted(around()).view(Batch(["a"], empty), draws)
    assert view.text.ids_BT.tolist() == [[0, 1]] and view.target.id_X.tolist() == [1]


def test_span_corruption_trains_a_captioner():
    model = make_captioner("simvlm").train()
    model.objectives = {"span_corruption": SpanCorruption().fitted(around())}
    pixels = torch.randint(0, 256, (2, 1, 3, 12, 12), dtype=torch.uint8)
    batch = with_views(Batch(["a", "b"], make_text(4, 9), pixels), model.objectives, draws, APART)
    model.total(batch, model.losses(batch)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.language.parameters())
