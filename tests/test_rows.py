"""All captions of a picture in one row: the same losses and gradients as one caption a row, for every mechanism."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
import transformers
from conftest import IN_BLOCKS, OBJECTIVES, Characters, language_of, make_fusion, make_language, make_text, nudge
from test_axes import FORMS
from test_captioner import OPTIM, REGIMES, Pixels

from src.captioner import Captioner
from src.contracts import Batch, Target, Text, View
from src.decoding.greedy import Greedy
from src.language.llama import Llama
from src.loading import rows
from src.loading.rows import Rows, with_views
from src.objectives.next_token import NextToken
from src.objectives.prefix_lm import PrefixLM

LENGTHS = (9, 4, 6, 3, 7, 7, 5, 9, 8, 4)  # two pictures with five captions each
LEARNT = {"next_token": NextToken(), "prefix_lm": PrefixLM(weight=0.5)}


def captions(lengths=LENGTHS) -> Text:
    """Captions as they are loaded: start token, words, end token, padding."""
    text = make_text(len(lengths), max(lengths))
    length_B1 = torch.tensor(lengths)[:, None]
    column_T = torch.arange(max(lengths))
    valid_BT = column_T < length_B1
    ids_BT = text.ids_BT.masked_fill(column_T == length_B1 - 1, Characters.eos).masked_fill(~valid_BT, Characters.pad)
    return Text(ids_BT, valid_BT, valid_BT.long())


def make_batch(rows: Rows, text: Text | None = None, pictures: int = 1, objectives=OBJECTIVES) -> Batch:
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, pictures, 3, 12, 12), dtype=torch.uint8, generator=g)
    valid_IM = None if pictures == 1 else torch.tensor([[True] * pictures, [True] * (pictures - 1) + [False]])
    batch = Batch(["a", "b"], captions() if text is None else text, pixels, image_valid_IM=valid_IM)
    return with_views(batch, objectives, random.Random, rows)


def make_captioner(language, name: str, overrides, regime: str, objectives) -> Captioner:
    fusion = make_fusion(name, language, *overrides)
    return Captioner(
        Pixels().double() if fusion.sees else None,
        fusion,
        language,
        Characters(),
        {**REGIMES[regime], "train_vision": fusion.sees and regime != "frozen_both"},
        OPTIM,
        Greedy(8),
        objectives,
    ).eval()


def learn(model: Captioner, batch: Batch) -> tuple[dict, dict]:
    """Losses, and the gradient of every parameter that trains."""
    model.zero_grad()
    losses = model.losses(batch)
    model.total(batch, losses).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return losses, gradients


def assert_same(one: tuple[dict, dict], other: tuple[dict, dict], atol: float = 1e-10) -> None:
    near = {"rtol": 0, "atol": atol}
    for name, loss in one[0].items():
        torch.testing.assert_close(loss.mean, other[0][name].mean, **near)
        assert loss.count == other[0][name].count and loss.terms.keys() == other[0][name].terms.keys()
        for term, (value, _) in loss.terms.items():
            torch.testing.assert_close(value, other[0][name].terms[term][0], **near)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        if gradient is None:
            assert other[1][name] is None, name
        else:
            torch.testing.assert_close(gradient, other[1][name], **near, msg=name)


def ends(model: Captioner) -> bool:
    return model.writer.reads_ends


# ------------------------------------------------------------------------------------------------- every mechanism
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize(("name", "overrides"), [form for form in FORMS if form[0] != "blind"])
def test_losses_and_gradients_are_those_of_one_caption_a_row(name, overrides, regime):
    model = make_captioner(language_of(name, context=20), name, overrides, regime, LEARNT)
    apart = make_batch(Rows(False, ends(model)), objectives=LEARNT)
    packed = make_batch(Rows(True, ends(model)), objectives=LEARNT)
    views = packed.views["next_token"].text
    assert len(views.ids_BT) == 2 and views.ids_BT.shape[1] == 33 - (0 if ends(model) else 5) > 20  # of the context
    assert_same(learn(model, packed), learn(model, apart))


@pytest.mark.parametrize("name", IN_BLOCKS)
def test_with_rotary_positions(name):
    """As near as the library's norms allow, which work in single precision whatever they get."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = transformers.LlamaConfig(vocab_size=131, num_key_value_heads=2, max_position_embeddings=64, **sizes)
    language = nudge(Llama(transformers.LlamaForCausalLM(config), Characters()).double()).eval()
    model = make_captioner(language, name, (), "finetune_lm", OBJECTIVES)
    packed, apart = (learn(model, make_batch(Rows(pack, ends(model)))) for pack in (True, False))
    assert_same(packed, apart, atol=1e-8)


@pytest.mark.parametrize("overrides", [(), ("fusion.last_image=false",)])
def test_several_texts_about_several_pictures(overrides):
    """Documents with more than one text: every column keeps the picture that it looks at."""
    text = captions()
    text.phi_BT = torch.where(text.valid_BT, torch.arange(9) // 3, 0)
    model = make_captioner(make_language(), "flamingo", overrides, "finetune_lm", OBJECTIVES)
    packed, apart = (learn(model, make_batch(Rows(pack, ends=False), text, pictures=3)) for pack in (True, False))
    assert_same(packed, apart)


@pytest.mark.parametrize("longest", [10, 17, 22, 10_000])
@pytest.mark.parametrize("name", ["cross_attention", "prefix", "coca"])
def test_more_captions_than_a_row_holds_take_several_rows(name, longest, monkeypatch):
    monkeypatch.setattr(rows, "LONGEST", longest)
    model = make_captioner(make_language(), name, (), "finetune_lm", OBJECTIVES)
    packed = make_batch(Rows(True, ends(model)))
    texts = packed.views["next_token"].text
    fits = texts.valid_BT.sum(1).max() <= longest
    assert fits and len(texts.ids_BT) == {10: 10, 17: 6, 22: 4}.get(longest, 2)
    assert_same(learn(model, packed), learn(model, make_batch(Rows(False, ends(model)))))


def test_a_mean_over_texts_counts_texts_and_not_rows():
    """optim.reduction=sequence_sum: summed over the tokens of a caption, mean over captions."""
    model = make_captioner(make_language(), "cross_attention", (), "finetune_lm", OBJECTIVES)
    model.optim = {**OPTIM, "reduction": "sequence_sum"}
    totals = []
    for pack in (True, False):
        batch = make_batch(Rows(pack, ends=False))
        totals.append(model.total(batch, losses := model.losses(batch)))
        want = losses["next_token"].mean * losses["next_token"].count / len(LENGTHS)
        torch.testing.assert_close(totals[-1], want, rtol=1e-6, atol=0)
    torch.testing.assert_close(*totals, rtol=0, atol=1e-10)


def test_without_pictures_rows_are_filled_up():
    model = make_captioner(make_language(), "blind", (), "finetune_lm", OBJECTIVES)
    batch = Batch([f"caption {i}" for i in range(10)], captions())
    packed, apart = (with_views(batch, OBJECTIVES, random.Random, Rows(pack, ends=False)) for pack in (True, False))
    assert packed.views["next_token"].text.ids_BT.shape == (1, 52)
    assert_same(learn(model, packed), learn(model, apart))


# ------------------------------------------------------------------------------------------------- rows themselves
def asked(view: View) -> list[tuple[list[int], int]]:
    """Every target with the tokens of its own text that stand before it."""
    text, T = view.text, view.text.ids_BT.shape[1]
    segment_BT = torch.ones_like(text.ids_BT) if text.segment_BT is None else text.segment_BT
    found = []
    for at, id in zip(view.target.at_X.tolist(), view.target.id_X.tolist(), strict=True):
        b, t = divmod(at, T)
        own_T = (segment_BT[b] == segment_BT[b, t]) & text.valid_BT[b]
        found.append((text.ids_BT[b, : t + 1][own_T[: t + 1]].tolist(), id))
    return found


def view_of(text: Text) -> View:
    return View(text, Target.next(text))


@pytest.mark.parametrize("lengths", [LENGTHS, (9, 9, 9, 9), (2, 2), (2, 9, 3, 3, 3, 3), (40,) * 6])
@pytest.mark.parametrize("ends", [False, True])
def test_every_token_is_asked_for_behind_its_own_text_and_none_is_lost(lengths, ends):
    view = view_of(captions(lengths))
    for contexts in (1, 2):
        packed = Rows(True, ends).lay(view, contexts)
        assert asked(packed) == asked(Rows(False, ends).lay(view, contexts)) == asked(view)
        assert packed.text.valid_BT.sum() == sum(lengths) - (0 if ends else len(lengths))


def test_a_caption_that_was_cut_has_no_end_and_loses_nothing():
    text = captions((9, 5))
    text.ids_BT[0, -1] = 77  # at data.max_tokens
    assert asked(Rows(True, ends=False).lay(view_of(text), 1)) == asked(view_of(text))


def test_one_caption_a_picture_is_a_row():
    view = view_of(captions((9, 5)))
    one, other = Rows(True, ends=False).lay(view, 2), Rows(False, ends=False).lay(view, 2)
    assert one.text.segment_BT is None and torch.equal(one.text.ids_BT, other.text.ids_BT)
    assert torch.equal(one.target.at_X, other.target.at_X)


def test_what_marks_columns_goes_with_them():
    text = captions((6, 4))
    text.phi_BT = torch.arange(12).view(2, 6)
    text.target_BT = text.valid_BT & (torch.arange(6).expand(2, 6) >= torch.tensor([[2], [3]]))
    laid = Rows(True, ends=False).lay(view_of(text), 1).text
    assert laid.phi_BT.tolist() == [[0, 1, 2, 3, 4, 6, 7, 8]]
    assert laid.segment_BT.tolist() == [[1] * 5 + [2] * 3]
    assert laid.targets().tolist() == [[False, False, True, True, True, False, False, False]]


def test_a_text_that_is_read_both_ways_stays_alone_and_whole():
    text = replace(captions((6, 4)), open_BT=torch.ones(2, 6, dtype=torch.bool))
    chosen_BT = text.valid_BT & (torch.arange(6) >= 3)
    view = View(text, Target.here(text.ids_BT, chosen_BT))
    for pack in (True, False):
        laid = Rows(pack, ends=False).lay(view, 1)
        assert laid.text.segment_BT is None and laid.text.valid_BT.sum() == 10
        assert torch.equal(laid.text.ids_BT.flatten()[laid.target.at_X], laid.target.id_X)


def test_labels_of_rows_and_prompts_stay_as_they_are():
    text = captions((6, 4))
    labelled = View(text, None, torch.tensor([1, 0]))
    assert Rows(True, ends=False).lay(labelled, 1) is labelled
    prompt = View(replace(text, ragged=True), None)
    assert Rows(True, ends=False).lay(prompt, 1) is prompt
