"""The real commands, end to end, as a user types them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import run
from conftest import FUSIONS
from PIL import Image, ImageColor

from src.comparison.arms import compare
from src.comparison.runs import find_runs, group
from src.diagnostics import figures
from src.diagnostics.reading import Reading
from src.errors import UserError
from src.reporting.gallery import gallery

SMOKE = ("debug=smoke", "language.model.width=32", "vision.width=32", "vision.layers=3", "language.model.layers=2")
# all but the last are options whatever the language model


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """One tiny run of the default fusion."""
    folder = tmp_path_factory.mktemp("runs") / "srau"
    run("src.train", *SMOKE, f"hydra.run.dir='{folder}'")
    return folder


def test_train_leaves_a_complete_run_folder(trained):
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["split"] == "test" and metrics["pictures"] == 16
    assert list(metrics["scores"])[:6] == ["loss", "gap/loss", "CIDEr-D", "truth", "truth_f1", "coverage"]
    assert {"ROUGE-L", "perplexity"} < set(metrics["scores"]) and list(metrics["scores"])[-1] == "BLEU-4"
    assert metrics["cost"]["parameters"]["trainable"] > 0 and metrics["cost"]["training_flops"] > 1e6
    rows = [json.loads(line) for line in (trained / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 16 and all(len(row["references"]) == 5 for row in rows)
    nats, shuffled, tokens = (sum(row[name] for row in rows) for name in ("nats", "nats_shuffled", "tokens_read"))
    assert metrics["scores"]["loss"] == pytest.approx(nats / tokens)
    assert metrics["scores"]["gap/loss"] == pytest.approx((shuffled - nats) / tokens) != 0
    assert Image.open(trained / "samples.png").width > 400
    assert "val/loss" in (trained / "log" / "metrics.csv").read_text()
    assert json.loads((trained / "environment.json").read_text())["command"].startswith("python -m src.train")
    checkpoint = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    assert any(name.startswith("fusion.") for name in checkpoint["state_dict"])


def test_evaluate_repeats_the_scores_and_keeps_the_run(trained):
    before = (trained / "metrics.json").read_bytes()
    run("src.evaluate", f"run={trained}")
    again = json.loads((trained / "evaluate" / "test" / "metrics.json").read_text())
    for name, score in json.loads(before)["scores"].items():
        assert again["scores"][name] == (score if score is None else pytest.approx(score, rel=1e-6)), name
    assert (trained / "metrics.json").read_bytes() == before
    run("src.evaluate", f"run={trained}", "split=compositional", "decode=greedy")
    assert (trained / "evaluate" / "compositional-greedy" / "predictions.jsonl").is_file()
    run("src.evaluate", f"run={trained}", "tokens=characters")
    counted = json.loads((trained / "evaluate" / "test-characters" / "metrics.json").read_text())
    assert (again["tokens"], counted["tokens"]) == ("words", "characters")


def test_caption_own_pictures_and_name_the_unreadable(trained, tmp_path):
    for i in range(3):
        Image.effect_noise((40 + 20 * i, 60), 80).convert("RGB").save(tmp_path / f"{i}.jpg")
    turned, exif = Image.new("RGB", (60, 40), "blue"), Image.Exif()
    turned.paste("red", (0, 0, 30, 40))  # stored on its side: the top is red
    exif[0x0112] = 6
    turned.save(tmp_path / "3.jpg", exif=exif, quality=95)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 not a picture")
    (tmp_path / "phone.heic").touch()
    answer = run("src.caption", f"run={trained}", f"images={tmp_path}", f"output={tmp_path}/out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "captions.jsonl").read_text().splitlines()]
    assert [Path(row["image"]).name for row in rows] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    sheet = Image.open(tmp_path / "out" / "captions.png")
    assert sheet.height > 224
    for y, colour in ((0, "red"), (1, "blue")):  # as the captioner saw it
        shown = sheet.getpixel((3 * 248 + 124, 12 + 56 + 112 * y))
        assert max(abs(a - b) for a, b in zip(shown, ImageColor.getrgb(colour), strict=True)) < 30
    assert "broken.jpg" in answer.stdout
    assert "passed over" in answer.stderr and "1 with .heic" in answer.stderr


def test_training_goes_on_from_the_last_checkpoint(trained, tmp_path):
    run("src.train", *SMOKE, "trainer.max_steps=6", f"resume={trained}", f"hydra.run.dir='{tmp_path}/more'")
    more = torch.load(tmp_path / "more" / "checkpoints" / "last.ckpt", weights_only=True)
    assert more["global_step"] == 6
    costs = [json.loads((folder / "metrics.json").read_text())["cost"] for folder in (trained, tmp_path / "more")]
    assert (
        costs[0]["pictures_seen"] < costs[1]["pictures_seen"] and costs[0]["train_seconds"] < costs[1]["train_seconds"]
    )
    assert (tmp_path / "more" / "log" / "before-1.csv").read_text() == (trained / "log" / "metrics.csv").read_text()


def test_a_resumed_run_equals_one_without_a_break(trained, tmp_path):
    """Also where nothing better comes after the break: the best so far is still the best."""
    run("src.train", *SMOKE, f"resume={trained}", f"hydra.run.dir='{tmp_path}/again'")
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (trained, tmp_path / "again")]
    assert metrics[0]["scores"] == pytest.approx(metrics[1]["scores"])
    assert metrics[0]["cost"]["batches_sha256"] == metrics[1]["cost"]["batches_sha256"]


def test_language_pretraining_then_a_frozen_language_model(tmp_path):
    """fusion=blind on captions without pictures is the language pre-training; its run folder is the weights."""
    captions = tmp_path / "captions.txt"
    captions.write_text(
        "\n".join(f"a {colour} {thing} ." for colour in ("red", "blue") for thing in map(str, range(60)))
    )
    sizes = ("language.model.width=32", "language.model.layers=2", "language.tokenizer.vocabulary=300")
    text = (
        "data=captions_text",
        f"data.source.files=[{captions}]",
        "data.workers=0",
        "data.batch_size=16",
        "fusion=blind",
        "trainer.max_steps=4",
        "trainer.val_check_interval=2",
    )
    run("src.train", *text, *sizes, f"hydra.run.dir='{tmp_path}/lm'")
    assert json.loads((tmp_path / "lm" / "metrics.json").read_text())["scores"]["loss"] > 0
    frozen = ("regime=frozen_lm", f"language.weights={tmp_path}/lm")
    run("src.train", "debug=smoke", "vision.width=32", "fusion=clipcap", *frozen, f"hydra.run.dir='{tmp_path}/cap'")
    state = torch.load(tmp_path / "cap" / "checkpoints" / "best.ckpt", weights_only=True)
    assert not any(name.startswith("language.") for name in state["state_dict"]) and "language" in state["frozen"]
    run("src.evaluate", f"run={tmp_path}/cap")
    # The frozen weights are looked up where they were, and checked.
    weights = tmp_path / "lm" / "checkpoints" / "best.ckpt"
    content = torch.load(weights, weights_only=True)
    next(iter(content["state_dict"].values())).add_(1)
    torch.save(content, weights)
    answer = run("src.evaluate", f"run={tmp_path}/cap", ok=False)
    assert "frozen language differs" in answer.stderr


def test_a_sweep_over_every_fusion_sees_identical_batches(tmp_path):
    folder = f"hydra.sweep.dir='{tmp_path}'"
    every = f"fusion={','.join(FUSIONS)}"  # in one process, which imports once
    run("src.train", "-m", every, "hydra/launcher=basic", *SMOKE[:-1], "trainer.max_steps=2", folder)
    costs = [json.loads(path.read_text())["cost"] for path in tmp_path.glob("*/metrics.json")]
    assert len(costs) == len(FUSIONS)
    assert len({cost["batches_sha256"] for cost in costs}) == 1 and costs[0]["pictures_seen"] == 16


WRONG = {
    "a typo in a key": (("fusion.tua=0.1",), "tua"),
    "an added unknown key": (("+fusion.tau2=0.1",), "did you mean fusion.tau"),
    "an unknown option": (("fusion=srua",), "srau"),
    "tau out of range": (("fusion.tau=0.7",), "fusion.tau must be"),
    "a wrong type": (("fusion.levels=many",), "fusion.levels must be a whole number"),
    "pictures that are missing": (("data=flickr8k", "data.root=/nowhere"), "/nowhere"),
    "a frozen random language model": (("regime=frozen_lm",), "language.weights"),
    "no run folder as weights": (("language.weights=/nowhere",), "not a run folder"),
    "pictures for a text-only set": (("data=captions_text",), "fusion=blind"),
    "a split that is not there, before any training": (("test_split=exam",), "no split 'exam'"),
    "questions that do not fit, before any training": (
        ("data=scenes_interleaved", "fusion=flamingo", "data.max_tokens=8", "data.source.train=40"),
        "more than 8 tokens; raise data.max_tokens",
    ),
    "a metric that is none": (("metrics=[bertscore]",), "metrics must be meteor, spice or clipscore"),
    "endless training": (("trainer.max_steps=-1",), "never end"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_gives_one_sentence(case, tmp_path):
    overrides, word = WRONG[case]
    answer = run("src.train", *overrides, f"hydra.run.dir='{tmp_path}/run'", ok=False)
    assert word in answer.stderr and "Traceback" not in answer.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_verbs_on_something_that_is_no_run(tmp_path):
    for verb, more in (("evaluate", ()), ("caption", (f"images={tmp_path}",))):
        answer = run(f"src.{verb}", f"run={tmp_path}", *more, ok=False)
        assert str(tmp_path) in answer.stderr and "Traceback" not in answer.stderr


@pytest.mark.parametrize("verb", ["evaluate", "caption"])
def test_a_run_must_be_named(verb):
    answer = run(f"src.{verb}", ok=False)
    assert "run= is missing" in answer.stderr and "Traceback" not in answer.stderr


def test_no_pictures_to_caption(trained, tmp_path):
    answer = run("src.caption", f"run={trained}", f"images={tmp_path}/none", ok=False)
    assert "names no picture" in answer.stderr


@pytest.fixture(scope="module")
def on_two_data_sets(tmp_path_factory) -> Path:
    """A tiny run on captions and stories together, by the mechanism that reads several pictures."""
    folder = tmp_path_factory.mktemp("runs") / "mixture"
    small = [
        f"data.members.{name}.source.{split}=16" for name in ("pairs", "stories") for split in ("train", "val", "test")
    ]
    tiny = ("data.members.pairs.batch_size=8", "data.members.stories.batch_size=4", "fusion.resampler_layers=1")
    workers = ("data.members.pairs.workers=0", "data.members.stories.workers=0", "trainer.log_every_n_steps=1")
    quick = ("trainer.max_steps=4", "trainer.val_check_interval=2", "decode.max_tokens=12", "samples=4")
    run(
        "src.train",
        "data=mixture",
        "fusion=flamingo",
        *small,
        *tiny,
        *workers,
        *quick,
        *SMOKE[1:],
        f"hydra.run.dir='{folder}'",
    )
    return folder


def test_a_run_on_two_data_sets_scores_and_logs_both(on_two_data_sets):
    pairs = json.loads((on_two_data_sets / "metrics.json").read_text())["scores"]
    stories = json.loads((on_two_data_sets / "stories" / "metrics.json").read_text())["scores"]
    assert "CIDEr-D" in pairs and "answers/right" in stories
    lines = (on_two_data_sets / "stories" / "predictions.jsonl").read_text().splitlines()
    for name in ("answers/right", "answers/colour"):  # per question, for src.compare
        values = [value for value in (json.loads(line)[name] for line in lines) if value is not None]
        assert sum(values) / len(values) == pytest.approx(stories[name])
    header = (on_two_data_sets / "log" / "metrics.csv").read_text().splitlines()[0].split(",")
    wanted = {"train/pairs/loss", "train/stories/loss", "val/pairs/loss", "val/stories/loss", "fusion/tanh_alpha/0"}
    assert wanted <= set(header)


def test_examples_in_the_context_and_the_second_data_set(on_two_data_sets):
    run("src.evaluate", f"run={on_two_data_sets}", "shots=2", "decode=greedy")
    scores = json.loads((on_two_data_sets / "evaluate" / "test-2-shot-greedy" / "metrics.json").read_text())["scores"]
    assert "CIDEr-D" in scores
    run("src.evaluate", f"run={on_two_data_sets}", "data_set=stories")
    again = json.loads((on_two_data_sets / "evaluate" / "stories-test" / "metrics.json").read_text())["scores"]
    assert again == json.loads((on_two_data_sets / "stories" / "metrics.json").read_text())["scores"]


def test_examples_need_a_mechanism_that_reads_several_pictures(trained):
    assert "fusion=flamingo" in run("src.evaluate", f"run={trained}", "shots=2", ok=False).stderr


def test_explain_draws_what_the_mechanism_notes(trained, on_two_data_sets, tmp_path):
    run("src.explain", f"run={trained}", "samples=1")
    names = {path.name for path in (trained / "explain").glob("*.png")}
    assert {"visual_gate.png", "language_gate.png"} <= names and any(n.startswith("attention-") for n in names)
    Image.effect_noise((50, 60), 80).convert("RGB").save(tmp_path / "noise.jpg")
    run("src.explain", f"run={on_two_data_sets}", f"images={tmp_path}/noise.jpg")
    found = {path.name for path in (on_two_data_sets / "explain").glob("*.png")}
    assert found == {"attention-noise.png", "occlusion-noise.png", "pooler-noise.png", "tanh_gates.png"}


@pytest.mark.slow
def test_captions_are_scored_at_every_validation(tmp_path):
    """The last curve point is the score of the final captions of the same pictures, in two processes as in one."""
    from src.comparison.runs import find_runs

    few = ("fusion=clipcap", *SMOKE, "val_captions=7", "trainer.max_steps=4", "trainer.val_check_interval=2")
    ddp = ("trainer.devices=2", "trainer.accelerator=cpu", "trainer.strategy=ddp", "data.batch_size=4")
    run("src.train", *few, "data.source.val=7", "test_split=val", f"hydra.run.dir='{tmp_path}/one'")
    (one,) = find_runs(f"{tmp_path}/one")
    curve = one.curve("val/CIDEr-D")
    assert len(curve) == 2
    best = min(one.curve("val/loss"), key=lambda point: point[1])[0]
    assert dict(curve)[best] == pytest.approx(one.scores["CIDEr-D"], abs=1e-5)
    run("src.train", *few, *ddp, f"hydra.run.dir='{tmp_path}/two'")
    assert len(find_runs(f"{tmp_path}/two")[0].curve("val/CIDEr-D")) == 2


def test_two_processes_train_together(tmp_path):
    """DDP over a mixture: both processes step on the same sums, one scores everything."""
    small = [
        f"data.members.{name}.source.{split}=8" for name in ("pairs", "stories") for split in ("train", "val", "test")
    ]
    sizes = ("data.members.pairs.batch_size=2", "data.members.stories.batch_size=2", "fusion.resampler_layers=1")
    quick = (
        "trainer.max_steps=2",
        "trainer.val_check_interval=2",
        "decode.max_tokens=8",
        "trainer.log_every_n_steps=1",
    )
    both = ("trainer.devices=2", "trainer.accelerator=cpu", "trainer.strategy=ddp", "samples=2")
    folder = f"hydra.run.dir='{tmp_path}/ddp'"
    run("src.train", "data=mixture", "fusion=flamingo", *small, *sizes, *quick, *both, *SMOKE[1:], folder)
    assert len((tmp_path / "ddp" / "predictions.jsonl").read_text().splitlines()) == 8
    assert json.loads((tmp_path / "ddp" / "stories" / "metrics.json").read_text())["pictures"] >= 16


@pytest.mark.slow
def test_two_processes_tell_what_one_tells(tmp_path):
    """Everything that is averaged, of nine validation pictures, which two cannot share evenly."""
    from src.comparison.runs import find_runs

    exact = ("dropout=0", "trainer.precision=32-true", "regime.train_vision=false")
    exact += (f"data.cache_dir='{tmp_path}/features'", "data.source.train=32", "data.source.val=9")
    few = ("fusion=coca", "fusion.contrastive_weight=1", *SMOKE, *exact, "trainer.max_steps=4")
    few += ("trainer.val_check_interval=2", "trainer.log_every_n_steps=2", "trainer.limit_val_batches=1.0")
    ddp = ("trainer.devices=2", "trainer.accelerator=cpu", "trainer.strategy=ddp", "data.batch_size=4")
    run("src.train", *few, "data.batch_size=8", f"hydra.run.dir='{tmp_path}/one'")
    run("src.train", *few, *ddp, f"hydra.run.dir='{tmp_path}/two'")
    (one,), (two,) = (find_runs(f"{tmp_path}/{name}") for name in ("one", "two"))
    for column in ("train/loss", "train/gradient_norm", "val/loss", "train/contrastive"):
        assert [step for step, _ in one.curve(column)] == [1, 3], column
        assert dict(two.curve(column)) == pytest.approx(dict(one.curve(column)), rel=2e-4), column
    assert two.scores["loss"] == pytest.approx(one.scores["loss"], rel=1e-4)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """A folder of eight pictures with captions, all in the split "test"."""
    folder = tmp_path_factory.mktemp("photographs")
    lines = ["image,caption,split"]
    for i in range(8):
        Image.effect_noise((40 + 20 * i, 60), 80).convert("RGB").save(folder / f"{i}.jpg")
        lines.append(f"{i}.jpg,a picture of number {i},{'val' if i == 7 else 'test'}")
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_evaluate_on_other_data_than_the_runs(trained, photographs, tmp_path):
    """Under a name of its own; the results say what they were scored on, and the report shows those pictures."""
    before = (trained / "metrics.json").read_bytes()
    answer = run("src.evaluate", f"run={trained}", "data=folder", f"data.root={photographs}", "data.workers=0")
    assert "folder/test, 7 pictures" in answer.stdout
    scored = trained / "evaluate" / "folder-test"
    metrics = json.loads((scored / "metrics.json").read_text())
    assert metrics["data"]["name"] == "folder" and metrics["data"]["source"]["root"] == str(photographs)
    rows = [json.loads(line) for line in (scored / "predictions.jsonl").read_text().splitlines()]
    assert [row["references"] for row in rows] == [[f"a picture of number {i}"] for i in range(7)]
    assert (trained / "metrics.json").read_bytes() == before
    arms = group(find_runs(str(trained), "folder-test"))
    shown, notes = gallery(arms)
    assert len(shown["pictures"]) == 7 and None not in shown["pictures"] and not notes

    fewer = tmp_path / "fewer"
    shutil.copytree(photographs, fewer)
    (fewer / "captions.csv").write_text("image,caption,split\n0.jpg,another caption,test\n")
    again = ("src.evaluate", f"run={trained}", "data=folder", f"data.root={fewer}", "data.workers=0")
    assert "is about other pictures or captions of split=test than these" in run(*again, ok=False).stderr
    run(*again, f"output={trained}/evaluate/fewer")
    with pytest.raises(UserError, match="differ in their references"):
        compare(group([*find_runs(str(trained), "folder-test"), _renamed(find_runs(str(trained), "fewer")[0])]))


def _renamed(one):
    """A run as if of another arm."""
    return replace(one, config={**one.config, "regime.lr_fusion": 9.0})


def test_evaluate_where_the_data_have_moved(photographs, tmp_path):
    was, now = tmp_path / "was", tmp_path / "now"
    shutil.copytree(photographs, was)
    text = (was / "captions.csv").read_text().replace("0.jpg,a picture of number 0,test", "0.jpg,number nought,train")
    (was / "captions.csv").write_text(text)
    small = [word for word in SMOKE if not word.startswith("debug")]
    quick = ("trainer.max_steps=1", "trainer.val_check_interval=1", "decode.max_tokens=8", "data.workers=0")
    source = ("data=folder", f"data.root={was}", "language.tokenizer.vocabulary=262")
    run("src.train", *small, *quick, *source, f"hydra.run.dir='{tmp_path}/run'")
    was.rename(now)
    answer = run("src.evaluate", f"run={tmp_path}/run", ok=False)
    assert f"{was}" in answer.stderr and "data.root=<folder>" in answer.stderr
    run("src.evaluate", f"run={tmp_path}/run", f"data.root={now}")
    again = json.loads((tmp_path / "run" / "evaluate" / "test" / "metrics.json").read_text())
    assert again["scores"] == json.loads((tmp_path / "run" / "metrics.json").read_text())["scores"]
    assert again["data"]["source"]["root"] == str(now)
    answer = run("src.evaluate", f"run={tmp_path}/run", f"data.root={photographs}", ok=False)
    assert "is about other pictures or captions" in answer.stderr  # six of the seven are the same


def test_a_root_that_nothing_reads_is_refused(trained, photographs):
    for words in ((), ("data=scenes",)):
        answer = run("src.evaluate", f"run={trained}", f"data.root={photographs}", *words, ok=False)
        assert "means nothing to these data" in answer.stderr


def test_labels_of_a_figure_lie_on_no_panel():
    gates = [torch.rand(1, 2, 3, 4) for _ in range(12)]
    reading = Reading(["a", "red", "circle"], [[0], [1], [2]], None, torch.zeros(3, 8, 8), {"visual_gate": gates})
    figure = figures.gate_openness([reading], "visual_gate")
    figure.canvas.draw()
    left, right = (axis.get_window_extent() for axis in figure.axes)
    labels = [label.get_window_extent() for label in figure.axes[1].get_yticklabels()]
    assert len(labels) == 12 and not any(label.overlaps(left) or label.overlaps(right) for label in labels)
