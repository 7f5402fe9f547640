"""The feature cache: equal to live features, rebuilt when stale or damaged, safe with several builders."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import time
from contextlib import nullcontext
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from omegaconf import OmegaConf
from PIL import Image

from src.build import build_vision
from src.config.make import make
from src.contracts import Example, UserError
from src.data.base import PictureFiles
from src.data.scenes import Scenes
from src.loading.feature_files import cache_key
from src.loading.features import FeatureCache
from src.records.built_once import ABANDONED
from src.vision.vit import ViT
from tests.conftest import nudge

COUNT = 21
GOLDEN = ROOT / "tests" / "golden" / "commit_25be8f1"


class Files(PictureFiles):
    name = "files"


@pytest.fixture
def vision() -> ViT:
    return nudge(ViT(image_size=32, patch=8, width=32, layers=3, heads=2))


@pytest.fixture
def source() -> Scenes:
    return Scenes(train=COUNT, val=4, test=4, compositional=4)


@pytest.fixture
def photographs(tmp_path) -> list[Example]:
    noise = np.random.default_rng(0)
    examples = []
    for index in range(4):
        path = tmp_path / f"{index}.png"
        Image.fromarray(noise.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
        examples.append(Example(path.name, ("a caption",), str(path)))
    return examples


def build(folder, vision, source, examples=None, levels=2, **options) -> FeatureCache:
    examples = source.examples("train") if examples is None else examples
    options = {"batch_size": 8, "workers": 0, "progress": False} | options
    return FeatureCache.open_or_build(folder, vision, source, examples, levels, **options)


def stamp(cache: FeatureCache) -> int:
    """Tells a rebuilt cache from one that was opened."""
    return (cache.folder / "manifest.json").stat().st_mtime_ns


def flip(path: Path, offset: int) -> None:
    """Flip one bit of a file, ``offset`` bytes from its end."""
    with open(path, "r+b") as file:
        file.seek(-offset, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


# --------------------------------------------------------------------------------------------------------------------
# content
# --------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("workers", [0, 2])
def test_cached_features_are_the_live_ones_in_half_precision(tmp_path, vision, source, workers):
    cache = build(tmp_path, vision, source, workers=workers)
    rows = [20, 0, 7, 7]
    examples = source.examples("train")
    pixels_IM3hw = torch.stack([source.pixels(examples[row], 32) for row in rows])[:, None]
    with torch.no_grad():
        live = vision.eval()(pixels_IM3hw, levels=2)
    found = cache.visual(rows)
    for name in ("tokens_IMNC", "pooled_IMC", "levels_IMKNC"):
        cached, expected = getattr(found, name), getattr(live, name)
        assert cached.dtype == torch.float16 and cached.shape == expected.shape
        torch.testing.assert_close(cached.float(), expected, atol=1e-3, rtol=1e-3)
    assert len(cache) == COUNT
    by_id = cache.visual([examples[row].id for row in rows])
    assert torch.equal(by_id.tokens_IMNC, found.tokens_IMNC)


def test_without_levels_none_are_stored(tmp_path, vision, source):
    cache = build(tmp_path, vision, source, levels=0)
    assert cache.visual([0]).levels_IMKNC is None
    assert sorted(path.name for path in cache.folder.iterdir()) == [
        "checksums.npy",
        "manifest.json",
        "pooled.npy",
        "tokens.npy",
    ]


def test_without_tokens_pooled_vectors_are_read_alone(tmp_path, vision, source):
    whole = build(tmp_path, vision, source)
    pooled = pickle.loads(pickle.dumps(build(tmp_path, vision, source, tokens=False)))
    assert pooled.folder == whole.folder  # the same files
    one, other = pooled.visual([3, 1]), whole.visual([3, 1])
    assert one.tokens_IMNC.shape == (2, 1, 0, vision.spec.width) and torch.equal(one.pooled_IMC, other.pooled_IMC)


def test_building_leaves_encoder_and_random_numbers_as_they_were(tmp_path, vision, source):
    vision.train()
    before = torch.random.get_rng_state()
    build(tmp_path, vision, source, workers=1)
    assert vision.training
    assert torch.equal(torch.random.get_rng_state(), before)
    vision(torch.zeros(1, 1, 3, 32, 32, dtype=torch.uint8)).pooled_IMC.sum().backward()  # no inference tensors left


def test_a_worker_that_is_spawned_opens_the_files_itself(tmp_path, vision, source):
    cache = build(tmp_path, vision, source)
    data = pickle.dumps(cache)
    assert len(data) < 4000
    assert torch.equal(pickle.loads(data).visual([3]).tokens_IMNC, cache.visual([3]).tokens_IMNC)


# --------------------------------------------------------------------------------------------------------------------
# key
# --------------------------------------------------------------------------------------------------------------------
def test_a_second_run_opens_what_the_first_has_built(tmp_path, vision, source):
    first = build(tmp_path, vision, source)
    assert stamp(build(tmp_path, vision, source)) == stamp(first)
    assert len(list(tmp_path.iterdir())) == 1


def test_whatever_features_depend_on_is_in_the_key(vision, source):
    def key(vision=vision, source=source, split="train", levels=2):
        return cache_key(vision, source, source.examples(split), levels)[0]

    before = key()
    assert key() == before
    assert key(levels=1) != before
    assert key(split="val") != before
    assert key(source=Scenes(seed=1, train=COUNT)) != before  # the same ids, other scenes
    assert key(source=Scenes(train=COUNT - 1)) != before
    examples = list(source.examples("train"))
    assert cache_key(vision, source, examples[::-1], 2)[0] != before
    with torch.no_grad():
        vision.blocks[1].down.weight[0, 0] += 1e-3
    assert key() != before


def test_changed_files_and_resizing_are_in_the_key(vision, photographs):
    source = Files()
    before = cache_key(vision, source, photographs, 0)[0]
    os.utime(photographs[1].image, ns=(0, 0))
    touched = cache_key(vision, source, photographs, 0)[0]
    source.prepare({"resize": "crop", "interpolation": "bicubic"})
    cropped = cache_key(vision, source, photographs, 0)[0]
    assert len({before, touched, cropped}) == 3


def test_drawing_differently_is_in_the_key(vision, source, monkeypatch):
    examples = source.examples("train")
    before = cache_key(vision, source, examples, 0)[0]
    pixels = source.pixels
    monkeypatch.setattr(source, "pixels", lambda example, size: 255 - pixels(example, size))
    assert cache_key(vision, source, examples, 0)[0] != before


def test_each_drawn_scene_is_in_the_key(vision, source, monkeypatch):
    monkeypatch.setattr("src.loading.feature_files.PROBES", 2)  # pixels of the first and the last only
    examples = list(source.examples("train"))
    before = cache_key(vision, source, examples, 0)[0]
    examples[7] = replace(examples[7], extra=examples[8].extra)
    assert cache_key(vision, source, examples, 0)[0] != before


def test_a_cache_of_an_earlier_version_is_taken(tmp_path, monkeypatch):
    """Built by commit 25be8f1: opened by today's code without a picture being encoded."""
    folder = shutil.copytree(GOLDEN / "features", tmp_path / "features")
    cfg = OmegaConf.load(GOLDEN / "run" / "config.yaml")
    vision, source = build_vision(cfg).eval(), make(cfg.data.source)
    for split in ("train", "val", "test", "compositional"):
        examples = source.examples(split)
        with monkeypatch.context() as patch:
            patch.setattr(vision, "encode", lambda *given: pytest.fail("computed again"))
            found = build(folder, vision, source, examples).visual(range(len(examples)))
        with torch.no_grad():
            live = vision(torch.stack([source.pixels(one, 32) for one in examples])[:, None], 2)
        torch.testing.assert_close(found.tokens_IMNC.float(), live.tokens_IMNC, atol=1e-2, rtol=1e-2)
        torch.testing.assert_close(found.levels_IMKNC.float(), live.levels_IMKNC, atol=1e-2, rtol=1e-2)
    assert {path.name for path in folder.iterdir()} == {path.name for path in (GOLDEN / "features").iterdir()}


# --------------------------------------------------------------------------------------------------------------------
# damage
# --------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["tokens.npy", "pooled.npy", "levels.npy", "checksums.npy", "manifest.json"])
@pytest.mark.parametrize("harm", ["cut", "delete"])
def test_an_incomplete_cache_is_rebuilt(tmp_path, vision, source, name, harm):
    cache = build(tmp_path, vision, source)
    expected = cache.visual([5]).tokens_IMNC
    path, before = cache.folder / name, stamp(cache)
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:-2])
    else:
        path.unlink()
    again = build(tmp_path, vision, source)
    assert stamp(again) != before
    assert torch.equal(again.visual([5]).tokens_IMNC, expected)
    assert [entry.name for entry in tmp_path.iterdir()] == [cache.folder.name]


def test_a_cache_of_another_key_is_never_used(tmp_path, vision, source):
    cache = build(tmp_path, vision, source)
    manifest = json.loads((cache.folder / "manifest.json").read_text())
    manifest["key"] = "0" * 64
    (cache.folder / "manifest.json").write_text(json.dumps(manifest))
    build(tmp_path, vision, source)
    assert json.loads((cache.folder / "manifest.json").read_text())["key"] != "0" * 64


@pytest.mark.parametrize("name", ["tokens", "pooled", "levels", "checksums"])
def test_a_flipped_bit_in_a_probed_row_rebuilds(tmp_path, vision, source, name):
    cache = build(tmp_path, vision, source)
    expected = cache.visual([COUNT - 1])  # the last row is always probed
    flip(cache.folder / f"{name}.npy", offset=3)
    again = build(tmp_path, vision, source)
    assert torch.equal(again.visual([COUNT - 1]).tokens_IMNC, expected.tokens_IMNC)
    assert torch.equal(again.visual([COUNT - 1]).pooled_IMC, expected.pooled_IMC)


def test_every_row_is_checked_when_first_read(tmp_path, vision, source):
    """Rows that opening has not looked at: no damaged one is handed out, whichever it is."""
    cache = build(tmp_path, vision, source)
    size = cache.visual([0]).pooled_IMC.numel() * 2  # bytes of a row
    for row in range(COUNT):
        flip(cache.folder / "pooled.npy", offset=(COUNT - row) * size - 1)
        opened = object.__new__(FeatureCache)
        opened.__setstate__(cache.__getstate__())
        with pytest.raises(UserError, match=f"train-0000{row:02d} are damaged; delete"):
            opened.visual([row])
        flip(cache.folder / "pooled.npy", offset=(COUNT - row) * size - 1)
        opened.visual([row])


def test_a_failed_build_leaves_nothing(tmp_path, vision, photographs, monkeypatch):
    monkeypatch.setattr("src.loading.feature_files.PROBES", 2)  # the first and the last: it breaks in between
    Path(photographs[2].image).write_bytes(b"no picture")
    folder = tmp_path / "cache"
    for workers in (0, 1):
        with pytest.raises(UserError, match=r"2\.png is damaged"):
            build(folder, vision, Files(), photographs, batch_size=2, workers=workers)
    Path(photographs[2].image).unlink()
    with pytest.raises(UserError, match=r"2\.png does not exist"):
        build(folder, vision, Files(), photographs)
    assert not folder.exists() or not list(folder.iterdir())


def test_features_beyond_half_precision_are_refused(tmp_path, vision, source):
    with torch.no_grad():
        vision.norm.weight.fill_(1e6)
    with pytest.raises(UserError, match="exceed the range"):
        build(tmp_path, vision, source)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_noticed_before_building(tmp_path, vision, source, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(UserError, match=r"set data\.cache_dir"):
        build(tmp_path, vision, source)


def test_pictures_with_the_same_id_are_refused(tmp_path, vision, source):
    examples = [source.examples("train")[0]] * 2
    with pytest.raises(UserError, match="same id"):
        build(tmp_path, vision, source, examples)


def test_leftovers_of_killed_builds_are_swept(tmp_path, vision, source):
    for name, age in ((".building-old", ABANDONED + 60), (".building-new", 60)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokens.npy").write_bytes(b"half")
        then = time.time() - age
        os.utime(tmp_path / name / "tokens.npy", (then, then))
        os.utime(tmp_path / name, (then, then))
    cache = build(tmp_path, vision, source)
    assert {entry.name for entry in tmp_path.iterdir()} == {".building-new", cache.folder.name}


# --------------------------------------------------------------------------------------------------------------------
# several processes
# --------------------------------------------------------------------------------------------------------------------
def _build_in_a_process(folder, state, results) -> None:
    vision = ViT(image_size=32, patch=8, width=32, layers=3, heads=2)
    vision.load_state_dict(state)
    cache = build(Path(folder), vision, Scenes(train=COUNT))
    results.put(cache.visual(range(COUNT)).tokens_IMNC.float().sum().item())


def test_processes_that_build_at_once_share_one_cache(tmp_path, vision, source):
    context = get_context("fork")
    results = context.SimpleQueue()
    state = vision.state_dict()
    builders = [context.Process(target=_build_in_a_process, args=(tmp_path, state, results)) for _ in range(3)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(60)
    sums = [results.get() for _ in builders]
    assert [builder.exitcode for builder in builders] == [0, 0, 0]
    cache = build(tmp_path, vision, source)
    assert [entry.name for entry in tmp_path.iterdir()] == [cache.folder.name]
    expected = cache.visual(range(COUNT)).tokens_IMNC.float().sum().item()
    assert sums == pytest.approx([expected] * 3, rel=1e-3)


def test_the_slower_builder_keeps_the_faster_ones_cache(tmp_path, vision, source, monkeypatch):
    """A process of another machine installs its cache while this one still computes."""
    from src.loading import feature_files, features

    monkeypatch.setattr(features, "alone", lambda place: nullcontext())
    encode, stamps = feature_files._encode, []

    def overtaken(*arguments):
        if not stamps:
            stamps.append(None)  # the build inside must not be overtaken itself
            stamps[0] = stamp(build(tmp_path, vision, source))
        return encode(*arguments)

    monkeypatch.setattr(feature_files, "_encode", overtaken)
    cache = build(tmp_path, vision, source)
    assert stamp(cache) == stamps[0]
    assert [entry.name for entry in tmp_path.iterdir()] == [cache.folder.name]
