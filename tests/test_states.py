"""A frozen language model's states from disk: those that were computed, and the same training."""

from __future__ import annotations

import os
import random

import pytest
import torch
from conftest import OBJECTIVES, make_language, quiet_trainer
from families import make_family
from test_rows import LENGTHS, captions, make_batch, make_captioner
from torch.utils.data import DataLoader

from src.contracts import Batch
from src.language import states
from src.language.states import States
from src.loading.rows import Rows, with_views
from src.training.frozen_states import FrozenStates


class Counting(States):
    """Counts the walks through the language model."""

    walks = 0

    def of(self, text, compute):
        def counted(alone):
            self.walks += 1
            return compute(alone)

        return super().of(text, counted)


EVERY = range(len(LENGTHS))


def view(rows: Rows, order=EVERY):
    text = captions()
    text.ids_BT[:, 1] = torch.arange(len(LENGTHS)) + 50  # no caption twice
    rearranged = captions(tuple(LENGTHS[i] for i in order))
    for name in ("ids_BT", "valid_BT", "phi_BT"):
        setattr(rearranged, name, getattr(text, name)[list(order)][:, : rearranged.ids_BT.shape[1]])
    return make_batch(rows, rearranged).views["next_token"].text


@pytest.mark.parametrize("family", ["gpt2", "neox", "opt_350m", "gemma3"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_states_are_those_computed_whatever_row_they_stand_in(dtype, family, tmp_path):
    language = (make_language(context=64) if family == "gpt2" else make_family(family)).to(dtype)
    language.states = kept = Counting(tmp_path)
    with torch.no_grad():
        first = language.hidden(view(Rows(True, ends=False)))
        again = language.hidden(view(Rows(True, ends=False)))
        other = view(Rows(True, ends=False), [3, 1, 9, 4])
        read = language.hidden(other)
        assert kept.walks == len(kept) == len(LENGTHS)
        language.states = None
        packed = view(Rows(True, ends=False))
        assert torch.equal(first[packed.valid_BT], again[packed.valid_BT]) and again.dtype == dtype
        near = {"rtol": 0, "atol": 1e-12 if dtype == torch.float64 else 0.1}
        torch.testing.assert_close(read[other.valid_BT], language.hidden(other)[other.valid_BT], **near)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_do_not_depend_on_what_was_read_before(dtype, tmp_path):
    """To the last bit, or a training that was stopped would end elsewhere than one in one go."""
    language, found = make_language(context=64).to(dtype), []
    wanted = view(Rows(True, ends=False))
    for before in ([], [3, 1, 9, 4], [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]):
        language.states = States(tmp_path)
        if before:
            language.hidden(view(Rows(len(before) > 4, ends=False), before))
        found.append(language.hidden(wanted))
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_what_does_not_fit_is_computed_every_time(tmp_path, monkeypatch):
    monkeypatch.setattr(states, "SHARE", 0)
    language, text = make_language(), view(Rows(True, ends=False))
    language.states = kept = Counting(tmp_path)
    with torch.no_grad():
        assert torch.equal(language.hidden(text), language.hidden(text))
    assert kept.walks == 2 * len(LENGTHS) and len(kept) == 0


def test_a_full_disk_costs_time_alone(tmp_path, monkeypatch):
    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    language, text = make_language(), view(Rows(True, ends=False))
    language.states = kept = Counting(tmp_path)
    with torch.no_grad():
        assert torch.equal(language.hidden(text), language.hidden(text))
    assert kept.walks == 2 * len(LENGTHS) and len(kept) == 0


def test_prompts_and_cached_steps_pass_by(tmp_path):
    model = make_captioner(make_language(), "vcgpt", (), "frozen_both", OBJECTIVES)
    model.language.states = Counting(tmp_path)
    model.caption([make_batch(Rows(False, ends=False))])
    assert model.language.states.walks == 0 and len(model.language.states) == 0


@pytest.mark.parametrize("regime", ["frozen_both", "finetune_lm"])
def test_a_training_learns_the_same_and_leaves_nothing_behind(regime, tmp_path, monkeypatch):
    """Eight steps on two batches by turns: a frozen model walks through each once."""

    def trained(callbacks) -> dict:
        torch.manual_seed(0)
        model = make_captioner(make_language(), "vcgpt", (), regime, OBJECTIVES)
        model.regime.update(lr_fusion=0.01, lr_language=0.001, lr_vision=0.001)
        batches = [batch(0), batch(1)] * 4
        quiet_trainer(max_steps=8, callbacks=callbacks).fit(model, DataLoader(batches, batch_size=None))
        assert model.language.states is None
        return model.state_dict()

    def batch(number: int) -> Batch:
        text = captions()
        text.ids_BT[:, 1] = 5 + number
        g = torch.Generator().manual_seed(number)
        pixels = torch.randint(0, 256, (2, 1, 3, 12, 12), dtype=torch.uint8, generator=g)
        return with_views(Batch(["a", "b"], text, pixels), OBJECTIVES, random.Random, Rows(True, ends=False))

    walks, of = [], States.of
    texts = [batch(number).text for number in (0, 1)]
    said = {
        tuple(ids[valid][:-1].tolist()) for text in texts for ids, valid in zip(text.ids_BT, text.valid_BT, strict=True)
    }
    with monkeypatch.context() as patch:
        patch.setattr(States, "of", lambda self, text, make: of(self, text, lambda one: walks.append(1) or make(one)))
        kept = trained([FrozenStates(tmp_path)])
    plain = trained([])
    assert len(walks) == (len(said) if regime == "frozen_both" else 0)
    for name, tensor in plain.items():
        torch.testing.assert_close(kept[name], tensor, rtol=0, atol=1e-10, msg=name)
    assert not list(tmp_path.iterdir())
