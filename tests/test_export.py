"""Exported captioners: they say what the run says, and nothing that differs from the manifest is read."""

from __future__ import annotations

import errno
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import run
from conftest import FUSIONS, IN_BLOCKS, ROOT
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file
from test_verbs import SMOKE
from test_vision import local_dir

from src.build import build
from src.config.added_keys import run_config
from src.config.earlier import use_earlier
from src.config.make import check
from src.errors import UserError
from src.export import check_empty, export
from src.language.load import tiny
from src.pretrained import caption_pictures, load, restore_captioner
from src.records.folder import Saved
from src.text.tokenizers import ByteLevelBPE
from src.vision.open_clip import OpenClip
from src.vision.vit import trained_vision

SIZES = ("language.model.width=32", "language.model.layers=2", "decode=greedy", "decode.max_tokens=6")
SMALL = {
    "flamingo": ("fusion.latents=4", "fusion.resampler_layers=1"),
    "coca": ("fusion.queries=4", "fusion.pooler_heads=4"),
}


def make_run(folder: Path, *overrides: str) -> Path:
    """A run folder as training leaves it, with random weights in place of trained ones."""
    small = ("data.source.train=40", "data.source.val=4", "data.source.test=4", "vision.width=32", "vision.layers=3")
    vision = small if not any(override.startswith("vision=") for override in overrides) else small[:3]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", ["name=test", *vision, *overrides])
    cfg = use_earlier(cfg)
    captioner = build(cfg, check(cfg)).captioner
    with torch.no_grad():
        for parameter in captioner.parameters():
            if parameter.requires_grad:  # away from the start, so that another seed or a lost tensor shows
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    folder.mkdir(parents=True)
    OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
    captioner.tokenizer.save(folder / "tokenizer")
    (folder / "checkpoints").mkdir()
    content = {"state_dict": captioner.state_dict(), "frozen": captioner.frozen_hashes()}
    torch.save(content, folder / "checkpoints" / "best.ckpt")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(5):
        Image.effect_noise((40 + 20 * i, 60), 80).convert("RGB").save(folder / f"{i}.png")
    return [str(path) for path in sorted(folder.iterdir())]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A real run, whose vision and language trained, and which was scored twice."""
    folder = tmp_path_factory.mktemp("runs") / "srau"
    run("src.train", *SMOKE, f"hydra.run.dir='{folder}'")
    (folder / "evaluate" / "val-greedy").mkdir(parents=True)
    second = {"split": "val", "pictures": 16, "scores": {"CIDEr-D": 0.4321}, "notes": {"CIDEr-D": "of few pictures"}}
    (folder / "evaluate" / "val-greedy" / "metrics.json").write_text(json.dumps(second))
    return folder


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory) -> Path:
    """``trained``, exported by the command."""
    to = tmp_path_factory.mktemp("exported") / "srau"
    answer = run("src.export", f"run={trained}", f"to={to}")
    assert f"written: {to}" in answer.stdout
    return to


@pytest.fixture(scope="module")
def previous(tmp_path_factory) -> Path:
    """A run that trained a language model."""
    return make_run(tmp_path_factory.mktemp("runs") / "lm", "fusion=blind", *SIZES)


# --------------------------------------------------------------------------------------------------------------------
# the same captions
# --------------------------------------------------------------------------------------------------------------------
def test_the_command_captions_alike(trained, exported, pictures, tmp_path):
    """Different pictures get different captions of the run, so that equal ones of the export mean something."""
    folder = Path(pictures[0]).parent
    for name, source in (("run", trained), ("export", exported)):
        run("src.caption", f"run={source}", f"images={folder}", "decode=sample", f"output={tmp_path}/{name}")
    captions = [(tmp_path / name / "captions.jsonl").read_text() for name in ("run", "export")]
    assert captions[0] == captions[1]
    assert len({json.loads(line)["caption"] for line in captions[0].splitlines()}) > 1


def test_the_call_on_the_card_loads_it(exported, trained, pictures, tmp_path):
    """The lines of the model card as they stand there, in a process of its own, in a folder where nothing else is."""
    (code,) = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)
    shutil.copytree(exported, tmp_path / "srau")
    shutil.copy(pictures[0], tmp_path / "photo.jpg")
    script = code + "\nprint(ascii(captions))"
    answer = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    own = caption_pictures(load(trained), [pictures[0]])[pictures[0]]
    assert answer.stdout.splitlines()[-1] == ascii({"photo.jpg": own})


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_mechanism(fusion, tmp_path, pictures):
    sizes = SIZES if fusion in IN_BLOCKS else [size for size in SIZES if "layers" not in size]
    folder = make_run(tmp_path / "run", f"fusion={fusion}", *sizes, *SMALL.get(fusion, ()))
    export(folder, tmp_path / "to", include=False)
    one, other = restore_captioner(folder), load(tmp_path / "to")
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    if one.vision is None:
        with pytest.raises(UserError, match="without pictures"):
            caption_pictures(other, pictures)
    else:
        assert caption_pictures(one, pictures) == caption_pictures(other, pictures)


def test_a_frozen_language_model_by_reference(previous, tmp_path, pictures):
    """It is looked up where it was, and must be the same one."""
    lm = shutil.copytree(previous, tmp_path / "lm")
    frozen = ("regime=frozen_lm", f"language.weights={lm}", "decode=greedy", "decode.max_tokens=6")
    folder = make_run(tmp_path / "run", "fusion=vcgpt", "fusion.wg=copy_frozen", *frozen)
    about = export(folder, tmp_path / "to", include=False)
    assert about.keys() == {"language"} and about["language"].source == str(lm) and not about["language"].included
    assert not any(name.startswith("language.") for name in load_file(tmp_path / "to" / "model.safetensors"))
    assert caption_pictures(load(folder), pictures) == caption_pictures(load(tmp_path / "to"), pictures)
    card = (tmp_path / "to" / "README.md").read_text()
    assert about["language"].sha256 in card and "Loading it needs the frozen language weights" in card
    weights = lm / "checkpoints" / "best.ckpt"
    content = torch.load(weights, weights_only=True)
    next(iter(content["state_dict"].values())).add_(1)
    torch.save(content, weights)
    with pytest.raises(UserError, match="frozen language differs"):
        load(tmp_path / "to")
    shutil.rmtree(lm)
    with pytest.raises(UserError, match=r"needs the frozen language model of the run .*frozen=include"):
        load(tmp_path / "to")


def test_a_frozen_language_model_included(previous, tmp_path, pictures):
    """Nothing but the folder is needed, wherever it is moved."""
    lm = shutil.copytree(previous, tmp_path / "lm")
    frozen = ("regime=frozen_lm", f"language.weights={lm}", "decode=greedy", "decode.max_tokens=6")
    folder = make_run(tmp_path / "run", "fusion=vcgpt", "fusion.wg=copy_frozen", *frozen)
    expected = caption_pictures(load(folder), pictures)
    export(folder, tmp_path / "to", include=True)
    shutil.rmtree(lm)
    shutil.move(tmp_path / "to", tmp_path / "elsewhere")
    captioner = load(tmp_path / "elsewhere")
    assert caption_pictures(captioner, pictures) == expected
    assert not captioner.trains("language") and not any(p.requires_grad for p in captioner.language.parameters())


@pytest.mark.parametrize("tower", ["transformer", "coca"])
def test_a_frozen_open_clip_tower_included(tower, tmp_path, pictures):
    """Its preprocessing, which the weights brought along, comes too."""
    preprocessing = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7), "resize_mode": "squash", "size": 32}
    model = local_dir(tmp_path / "tower", tower, **preprocessing)
    folder = make_run(tmp_path / "run", "vision=open_clip", f"vision.model='{model}'", "vision.pretrained=null",
                      "regime.train_vision=false", "fusion=cross_attention", *SIZES)  # fmt: skip
    about = export(folder, tmp_path / "to", include=True)
    assert about["vision"].source == model
    one = restore_captioner(folder)
    shutil.rmtree(tmp_path / "tower")
    other = load(tmp_path / "to")
    assert isinstance(other.vision, OpenClip) and other.vision.identity() == one.vision.identity()
    assert other.vision.preprocessing["mean"] == (0.1, 0.2, 0.3) and not other.trains("vision")
    assert caption_pictures(one, pictures) == caption_pictures(other, pictures)


@pytest.mark.parametrize("regime", ["finetune_lm", "frozen_lm"])
def test_a_language_model_of_a_hub_needs_none_afterwards(regime, tmp_path, pictures):
    """Trained or included, its configuration comes with the export."""
    captions = [f"a {colour} {shape}" for colour in ("red", "blue") for shape in ("circle", "square")]
    tokenizer = ByteLevelBPE.train(captions, 300)
    model = tiny(tokenizer, width=32, layers=2).model
    model.save_pretrained(tmp_path / "hub")
    tokenizer.save(tmp_path / "hub")
    ids = {name: f"<{name}>" for name in ("bos", "eos", "pad")}
    special = {f"{name}_token": tokenizer.backend.id_to_token(getattr(tokenizer, name)) for name in ids}
    about = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (tmp_path / "hub" / "tokenizer_config.json").write_text(json.dumps(about))
    hub = ("language=hub", f"language.name={tmp_path}/hub", f"regime={regime}", "fusion=clipcap", *SIZES[2:])
    folder = make_run(tmp_path / "run", *hub)
    expected = caption_pictures(load(folder), pictures)
    export(folder, tmp_path / "to", include=True)
    shutil.rmtree(tmp_path / "hub")
    assert caption_pictures(load(tmp_path / "to"), pictures) == expected


def test_an_export_serves_as_language_weights(previous, tmp_path, pictures):
    export(previous, tmp_path / "lm", include=False)
    frozen = ("regime=frozen_lm", f"language.weights={tmp_path}/lm", "fusion=clipcap", "decode=greedy")
    folder = make_run(tmp_path / "run", *frozen)
    one, other = restore_captioner(previous), restore_captioner(folder)
    for name, tensor in one.language.state_dict().items():
        assert torch.equal(tensor, other.language.state_dict()[name]), name
    export(folder, tmp_path / "to", include=True)
    export(make_run(tmp_path / "third", "regime=frozen_lm", f"language.weights={tmp_path}/to", "fusion=srau"),
           tmp_path / "fourth", include=False)  # fmt: skip


def test_tied_tensors_are_stored_once(exported):
    """The output matrix of the language model is that of its embeddings."""
    tied = json.loads((exported / "manifest.json").read_text())["tied"]
    assert tied == {"language.model.lm_head.weight": "language.model.transformer.wte.weight"}
    assert "language.model.lm_head.weight" not in load_file(exported / "model.safetensors")
    model = load(exported).language.model
    assert model.lm_head.weight is model.transformer.wte.weight


# --------------------------------------------------------------------------------------------------------------------
# the card
# --------------------------------------------------------------------------------------------------------------------
def test_the_card_says_what_the_run_knows(trained, exported):
    card = (exported / "README.md").read_text()
    metrics = json.loads((trained / "metrics.json").read_text())
    environment = json.loads((trained / "environment.json").read_text())
    for score, value in metrics["scores"].items():
        assert f"| {score} | {'-' if value is None else format(value, '.4f')} |" in card
    assert f"| parameters, trainable | {metrics['cost']['parameters']['trainable']:,} |" in card
    assert f"| GFLOP a step | {metrics['cost']['training_flops'] / 1e9:,.1f} |" in card
    assert environment["command"] in card and environment["commit"] in card and metrics["references_sha256"] in card
    assert "| CIDEr-D | 0.4321 |" in card and "CIDEr-D: of few pictures" in card  # of the second evaluation
    for section in ("Use", "Scores", "Cost", "Parts", "Training", "Licences", "Intended use", "Limits"):
        assert f"\n## {section}\n" in card
    assert "only seen drawn scenes" in card
    assert ("with uncommitted changes" in card) == environment["uncommitted_changes"]
    from huggingface_hub import ModelCard

    head = ModelCard(card).data
    assert head.language == "en" and head.pipeline_tag == "image-to-text" and "fusion-srau" in head.tags
    values = {result.metric_type: result.metric_value for result in head.eval_results}
    assert values["loss"] == pytest.approx(metrics["scores"]["loss"], abs=1e-4)


def test_a_card_of_weights_and_data_with_other_terms(previous, tmp_path):
    """Those of the run that it started from count too."""
    lm = shutil.copytree(previous, tmp_path / "lm")
    cfg = run_config(lm)
    cfg.data.source = {"_target_": "src.data.captions_text.CaptionsText", "files": ["spice_jar"]}
    OmegaConf.save(cfg, lm / "config.yaml")
    vision = ("vision=efficientnet_lite0", "vision.weights=package")
    frozen = ("regime=frozen_lm", f"language.weights={lm}")
    folder = make_run(tmp_path / "run", "fusion=clipcap", *frozen, *vision, *SIZES[2:])
    export(folder, tmp_path / "to", include=False)
    card = (tmp_path / "to" / "README.md").read_text()
    assert "COCO 2014: captions under CC BY 4.0" in card and "Apache 2.0" in card and "drawn by the code itself" in card
    assert "had not been scored" in card and "frozen, from `package`" in card
    assert not any(name.startswith("vision.") for name in load_file(tmp_path / "to" / "model.safetensors"))


# --------------------------------------------------------------------------------------------------------------------
# what differs is refused, and what is there is kept
# --------------------------------------------------------------------------------------------------------------------
FILES = ("captioner.yaml", "environment.json", "metrics.json", "model.safetensors", "tokenizer/special_ids.json",
         "tokenizer/tokenizer.json", "evaluate/val-greedy/metrics.json")  # fmt: skip


def test_the_umask_says_who_may_read_the_files(exported):
    modes = {path.name: path.stat().st_mode for path in exported.rglob("*") if path.is_file()}
    (exported.parent / "made_here").touch()
    assert set(modes.values()) == {(exported.parent / "made_here").stat().st_mode}, modes


def test_every_file_but_the_card_is_in_the_manifest(exported):
    listed = set(json.loads((exported / "manifest.json").read_text())["files"])
    there = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    assert listed == set(FILES) and there - listed == {"manifest.json", "README.md"}


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named(name, damage, exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "copy")
    content = bytearray((folder / name).read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content[: len(content) - (damage == "cut")])
    if damage == "gone":
        (folder / name).unlink()
    with pytest.raises(UserError, match=re.escape(f"{folder / name} is ")) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_at_the_command_line(exported, pictures, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "copy")
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    answer = run("src.caption", f"run={folder}", f"images={pictures[0]}", ok=False)
    assert f"error: {folder}/model.safetensors is not what was exported" in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "manifest.json is damaged"),
        ("[]", "manifest.json is damaged"),
        ('{"format": 1, "files": [], "frozen": {}, "tied": {}}', "manifest.json is damaged"),
        ('{"format": 1, "files": {}, "frozen": {"language": {}}, "tied": {}}', "manifest.json is damaged"),
        ('{"format": 2, "files": {}}', "format 2"),
    ],
)
def test_a_broken_manifest(content, message, exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "copy")
    (folder / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_people_may_edit_the_card(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "copy")
    (folder / "README.md").write_text("my own words")
    load(folder)


def test_nothing_is_overwritten(trained, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        answer = run("src.export", f"run={trained}", f"to={tmp_path}/{name}", ok=False)
        assert f"to={tmp_path}/{name} exists already" in answer.stderr and "Traceback" not in answer.stderr
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["file", "full", "precious.txt"]
    (tmp_path / "empty").mkdir()
    check_empty(tmp_path / "empty")
    export(trained, tmp_path / "empty", include=False)
    load(tmp_path / "empty")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_on_the_way_leaves_nothing(error, trained, tmp_path, monkeypatch):
    def write(*_):
        raise error

    monkeypatch.setattr("src.records.exported.write_json", write)
    with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        export(trained, tmp_path / "to", include=False)
    assert list(tmp_path.iterdir()) == []
    assert isinstance(error, KeyboardInterrupt) or "No space left on device" in str(caught.value)


def test_what_does_not_read_back_alike_is_not_exported(trained, tmp_path, monkeypatch):
    import src.pretrained

    def other(folder, decode=None):
        captioner = restore_captioner(folder, decode)
        if not (folder / "checkpoints").exists():
            captioner.fusion.requires_grad_(False).apply(lambda m: [p.mul_(-3) for p in m.parameters(recurse=False)])
        return captioner

    monkeypatch.setattr(src.pretrained, "restore_captioner", other)
    with pytest.raises(UserError, match="captions in another way"):
        export(trained, tmp_path / "to", include=False)
    assert list(tmp_path.iterdir()) == []


WRONG = {
    "no run folder": (("run=/nowhere", "to=x"), "/nowhere is not a run folder"),
    "no target": (("run={trained}",), "to= is missing"),
    "an unknown choice": (("run={trained}", "to={tmp}/x", "frozen=yes"), "frozen must be reference or include"),
    "an export": (("run={exported}", "to={tmp}/x"), "is an export"),
    "a place that cannot be": (("run={trained}", "to=/dev/null/x"), "cannot be written"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_gives_one_sentence(case, trained, exported, tmp_path):
    arguments, message = WRONG[case]
    names = {"trained": trained, "exported": exported, "tmp": tmp_path}
    answer = run("src.export", *(argument.format(**names) for argument in arguments), ok=False)
    assert message in answer.stderr and "Traceback" not in answer.stderr and len(answer.stderr.splitlines()) == 1


# --------------------------------------------------------------------------------------------------------------------
# an export where a run may stand
# --------------------------------------------------------------------------------------------------------------------
def scores(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())["scores"]


def test_an_export_is_scored_like_its_run(trained, exported, tmp_path):
    """On the data that its configuration names, and on others that are named; no file of it changes."""
    folder = shutil.copytree(exported, tmp_path / "srau")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    run("src.evaluate", f"run={folder}")
    own = scores(folder / "evaluate" / "test")
    known = scores(trained)
    assert own.keys() == known.keys()
    for name, score in known.items():
        assert own[name] == (score if score is None else pytest.approx(score, rel=1e-5, abs=1e-7)), name
    small = ("data=scenes", "data.source.train=64", "data.source.val=16", "data.source.test=16")
    run("src.evaluate", f"run={folder}", *small, f"output={tmp_path}/out")
    other = scores(tmp_path / "out")
    assert {name: score for name, score in other.items() if score is None} == {
        n: s for n, s in own.items() if s is None
    }
    assert {n: s for n, s in other.items() if s is not None} == pytest.approx(
        {n: s for n, s in own.items() if s is not None}, rel=1e-5, abs=1e-7
    )
    assert all(path.read_bytes() == content for path, content in before.items())
    load(folder)  # which compares all files with the manifest


def test_scores_that_came_with_an_export_are_not_written_over(exported):
    answer = run("src.evaluate", f"run={exported}", "split=val", "decode=greedy", ok=False)
    assert f"{exported}/evaluate/val-greedy came with the export" in answer.stderr and "output=" in answer.stderr


def test_an_export_is_looked_into(exported, tmp_path):
    run("src.explain", f"run={exported}", "samples=1", f"output={tmp_path}")
    assert (tmp_path / "visual_gate.png").is_file() and list(tmp_path.glob("attention-*.png"))


def test_both_kinds_of_folder_answer_alike(trained, exported):
    one, other = Saved.at(trained), Saved.at(exported)
    assert one.is_run and not other.is_run and one.is_there and other.is_there
    assert not Saved.at(trained / "checkpoints").is_there
    assert one.tensors.keys() == other.tensors.keys() and one.frozen == other.frozen
    assert all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())
    assert one.part("vision").keys() == other.part("vision").keys() and one.part("nothing") == {}
    assert one.config().fusion == other.config().fusion
    assert one.tokenizer() == trained / "tokenizer" and other.weights() == exported / "model.safetensors"


def test_an_encoder_is_taken_out_of_an_export(trained, exported):
    state = trained_vision(exported)
    assert state and all(torch.equal(x, state[name]) for name, x in trained_vision(trained).items())
