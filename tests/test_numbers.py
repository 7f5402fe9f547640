"""Numbers that must not spread: loss spikes, infinities, tokens that mean something else than the weights learnt."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, viewed
from test_captioner import OPTIM, make_batch, make_captioner
from test_verbs import SMOKE
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from src.contracts import UserError
from src.pretrained import take_over
from src.records.weights import read_checkpoint
from src.text.tokenizers import ByteLevelBPE, FastTokenizer, load_tokenizer
from src.training.loss_spikes import ENOUGH, WINDOW, LossSpikes
from src.training.soundness import check_rows


# ------------------------------------------------------------------------------------------------- loss spikes
def test_a_spike_is_a_multiple_of_the_running_median():
    spikes = LossSpikes(3.0)
    assert [spikes.see("", 100.0 if i % 2 else 1.0) for i in range(ENOUGH)] == [None] * ENOUGH  # too early to say
    spikes = LossSpikes(3.0)
    for _ in range(WINDOW):
        assert spikes.see("", 2.0) is None
    assert spikes.see("", 6.0) is None and not spikes.pending
    assert spikes.see("", 6.1) == 2.0 and spikes.pending
    assert spikes.see("other", 50.0) is None  # another data set has its own median


def test_a_loss_that_stays_high_is_no_spike_for_ever():
    spikes = LossSpikes(3.0)
    for _ in range(WINDOW):
        spikes.see("", 1.0)
    left_out = [spikes.see("", 10.0) is not None for _ in range(WINDOW)]
    assert left_out[0] and sum(left_out) == WINDOW // 2 + 1 and not left_out[-1]


def test_spikes_go_on_after_a_break():
    one, other = LossSpikes(3.0), LossSpikes(3.0)
    for i in range(150):
        one.see("a", float(i))
    one.skipped = 4
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert other.skipped == 4 and [one.see("a", 300.0), one.see("a", 150.0)] == [other.see("a", 300.0), None]


def watched(factor=3.0):
    """A captioner with the guard, and its optimiser."""
    model = make_captioner()
    model.optim = {**OPTIM, "loss_spike": factor}
    model.spikes = LossSpikes(factor)
    model._trainer = SimpleNamespace(is_global_zero=True, global_step=7, log_every_n_steps=1, precision="32-true")
    model.log = model.log_dict = lambda *args, **options: None
    return model, torch.optim.AdamW(model.parameter_groups(), fused=True)


def update(model, optimizer, batch) -> None:
    """One update as the trainer makes it."""
    optimizer.zero_grad()
    model.training_step(batch, 0).backward()
    model.configure_gradient_clipping(optimizer, 1.0)
    optimizer.step()


def test_an_update_with_a_spike_moves_nothing(capsys):
    model, optimizer = watched()
    for seed in range(2):
        update(model, optimizer, make_batch(seed=seed))
    usual = model.text_loss(make_batch(seed=2))[0].item()
    model.spikes.recent[""].extend([usual / 100] * WINDOW)
    before = {name: x.clone() for name, x in model.named_parameters()}
    state = deepcopy(list(optimizer.state.values()))
    update(model, optimizer, make_batch(seed=2))
    assert all(torch.equal(x, before[name]) for name, x in model.named_parameters())
    for was, now in zip(state, optimizer.state.values(), strict=True):
        assert all(torch.equal(was[key], now[key]) for key in now)
    said = capsys.readouterr().out
    assert "note: the update at step 7 is left out: the loss" in said and "batch of p0, p1" in said
    assert model.spikes.skipped == 1 and not model.spikes.pending
    model.spikes.recent[""].extend([usual] * WINDOW)
    update(model, optimizer, make_batch(seed=3))
    assert not all(torch.equal(x, before[name]) for name, x in model.named_parameters())


def test_the_guard_is_off_by_default_and_an_option():
    assert make_captioner().spikes is None
    model, _ = watched()
    checkpoint = {}
    model.spikes.see("", 4.0)
    model.on_save_checkpoint(checkpoint)
    again, _ = watched()
    again.on_load_checkpoint(checkpoint)
    assert list(again.spikes.recent[""]) == [4.0]


# ------------------------------------------------------------------------------------------------- infinities
@pytest.mark.parametrize("spoilt", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_stops_before_the_weights_move(spoilt):
    """The loss before it was finite."""
    model, optimizer = watched()
    before = {name: x.clone() for name, x in model.named_parameters()}
    optimizer.zero_grad()
    model.training_step(make_batch(), 0).backward()
    next(x for x in model.parameters() if x.grad is not None).grad.view(-1)[0] = spoilt
    with pytest.raises(UserError, match=r"gradient \(norm\) is (nan|inf) at step 7, on the batch of p0, p1 .* is kept"):
        model.configure_gradient_clipping(optimizer, 1.0)
    assert all(torch.equal(x, before[name]) for name, x in model.named_parameters())


PLANTED = """
import sys
from src import train
from src.captioner import Captioner
losses, run, options = Captioner.losses, sys.argv[1], sys.argv[2:]
def planted(self, batch):
    bad = float("nan") if self.training and self.global_step == 3 else 1.0
    return {name: loss._replace(mean=loss.mean * bad) for name, loss in losses(self, batch).items()}
Captioner.losses = planted
sys.argv[1:] = [*options, f"hydra.run.dir='{run}/first'"]
try:
    train.main()
except SystemExit as end:
    assert end.code == 2
Captioner.losses = losses
sys.argv[1:] = [*options, f"resume={run}/first", f"hydra.run.dir='{run}/more'"]
train.main()
"""


def test_after_a_nan_the_last_good_checkpoint_is_there_and_goes_on(tmp_path):
    """Training in steps 0 to 5, validated after every second; the loss of step 3 is no number."""
    command = [sys.executable, "-c", PLANTED, str(tmp_path), *SMOKE, "fusion=clipcap", "trainer.max_steps=6"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr[-2000:]
    assert "training loss (next_token) is nan at step 3" in answer.stderr
    assert "the last checkpoint is kept" in answer.stderr
    first, more = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("first", "more")
    )
    assert (first["global_step"], more["global_step"]) == (2, 6)
    assert all(torch.isfinite(x).all() for x in first["state_dict"].values())
    assert not (tmp_path / "first" / "result.json").exists() and (tmp_path / "more" / "result.json").is_file()


# ------------------------------------------------------------------------------------------------- tokens
TEXTS = ["a red circle and a blue square", "two dogs run on the beach", "a dog"]


def test_special_tokens_must_be_special():
    good = ByteLevelBPE.train(TEXTS, 300)
    letter = good.encode(["a"])[0][0]
    for wrong in ({"bos": letter}, {"eos": letter}, {"pad": good.encode(["."])[0][0]}):
        ids = {"bos": good.bos, "eos": good.eos, "pad": good.pad, **wrong}
        with pytest.raises(UserError, match=rf"The {next(iter(wrong))} id \d+ is '.', which is ordinary text"):
            FastTokenizer(good.backend, **ids)
    for id in (len(good), -1, None, "3"):
        with pytest.raises(UserError, match="lie outside the tokenizer's"):
            FastTokenizer(good.backend, bos=id, eos=good.eos, pad=good.pad)


def test_an_empty_vocabulary():
    backend = Backend(models.WordLevel({"<s>": 0}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(UserError, match="tokenizer"):
        FastTokenizer(backend, 0, 0, 0)


def test_special_ids_of_a_saved_tokenizer(tmp_path):
    ByteLevelBPE.train(TEXTS, 300).save(tmp_path)
    for content, word in (('{"bos": 1, "eos": null, "pad": 0}', "lie outside"), ('{"bos": 1, "pad": 0}', "'eos'")):
        (tmp_path / "special_ids.json").write_text(content)
        with pytest.raises(UserError, match=word) as caught:
            load_tokenizer(tmp_path)
        assert "\n" not in str(caught.value)


def test_padding_on_the_wrong_side_is_refused_at_the_first_batch():
    model, batch = make_captioner(), make_batch()
    model._trainer = SimpleNamespace(is_global_zero=True, global_step=0, log_every_n_steps=1)
    model.log = model.log_dict = lambda *args, **options: None
    model.training_step(batch, 0)
    left = replace(batch.text, valid_BT=batch.text.valid_BT.flip(1))
    for step in (model.training_step, model.validation_step):
        with pytest.raises(UserError, match="has padding before its text"):
            step(viewed(replace(batch, text=left)), 0)
    check_rows(replace(left, ragged=True), 131)  # prompts say so
    gap = replace(batch.text, valid_BT=torch.tensor([[1, 0, 1, 0, 0, 0]] * 4).bool())
    with pytest.raises(UserError, match="has padding before its text"):
        check_rows(gap, 131)


def test_ids_that_the_language_model_does_not_know_are_refused_at_the_first_batch():
    text = make_batch().text
    text.ids_BT[:, 1:] += 100
    with pytest.raises(UserError, match=r"token ids from 0 to \d+, and the language model knows 0 to 99"):
        check_rows(text, 100)


def test_a_tokenizer_that_the_checkpoint_was_not_trained_with(tmp_path):
    """Same sizes, so that nothing else would notice."""
    model, path = make_captioner(), tmp_path / "best.ckpt"
    checkpoint = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    take_over(make_captioner(), read_checkpoint(path))
    other = make_captioner()
    decode = other.tokenizer.decode
    other.tokenizer.decode = lambda ids: decode([{70: 71, 71: 70}.get(id, id) for id in ids])
    with pytest.raises(UserError, match="tokenizer differs from the one that this checkpoint was trained with"):
        take_over(other, read_checkpoint(path))
    with pytest.raises(UserError, match="tokenizer differs"):
        other.on_load_checkpoint(checkpoint)


def test_a_checkpoint_of_other_sizes(tmp_path):
    model = make_captioner()
    state = model.state_dict()
    name = next(name for name in state if name.endswith("wte.weight"))
    with pytest.raises(
        UserError, match=r"has the shape \(130, 32\) there and \(131, 32\) here; use the config and the"
    ):
        model.load_state_dict({**state, name: state[name][:-1]})
