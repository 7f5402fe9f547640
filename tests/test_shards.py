"""Shards: the examples that were written, in one order for any number of workers, resumable, never all in memory."""

from __future__ import annotations

import gc
import gzip
import io
import json
import lzma
import os
import pickle
import signal
import tarfile
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_bad_inputs import png
from test_resume import assert_same, ended_at
from trainings import Trainings

from src.data import shard_index
from src.data.folder import Folder
from src.data.scenes import Scenes
from src.data.shard_writer import write_shards
from src.data.shards import ShardOrder, Shards, expand
from src.errors import UserError
from src.loading.module import CaptionData

SHARDS, EACH = 5, 6  # of the training split


@pytest.fixture(autouse=True)
def own_working_folder(tmp_path_factory, monkeypatch):
    """Lists of what was left out go below the working folder."""
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 255 - number, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def pack(path: Path, entries: dict[str, bytes | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in entries.items():
            content = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def pairs(numbers) -> dict[str, bytes | str]:
    """Entries as img2dataset writes them: the picture shows its number, and its caption says it."""
    entries = {}
    for i in numbers:
        metadata = json.dumps({"caption": "not this one", "url": "http://a/b.png", "key": f"{i:04d}"})
        entries |= {f"{i:04d}.png": picture(i), f"{i:04d}.txt": f"picture {i}", f"{i:04d}.json": metadata}
    return entries


def folder(root: Path, count: int = SHARDS, each: int = EACH) -> Path:
    for shard in range(count):
        pack(root / "train" / f"{shard:05d}.tar", pairs(range(shard * each, (shard + 1) * each)))
    pack(root / "val" / "00000.tar", pairs(range(200, 205)))
    return root


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    return folder(tmp_path_factory.mktemp("shards"))


def read(root: Path, **options) -> Shards:
    options = {"train": "train", "val": "val", "window": 2, "cache_dir": str(root / "index")} | options
    return Shards(str(root), **options)


def batches(source: Shards, tokenizer, **options) -> CaptionData:
    options = {"image_size": 8, "batch_size": 4, "captions_per_image": 1, "seed": 3} | options
    return CaptionData(source, tokenizer, **options)


def seen(batch) -> list[int]:
    """The numbers that the pictures show, after seeing that id and caption agree with them."""
    numbers = batch.pixels_IM3hw[:, 0, 0, 0, 0].tolist()
    assert [int(id[-4:]) for id in batch.ids] == numbers
    rows = zip(batch.text.ids_BT, batch.text.valid_BT, strict=True)
    assert ["".join(chr(i - 3) for i in ids[valid][1:-1].tolist()) for ids, valid in rows] == [
        f"picture {number}" for number in numbers
    ]
    return numbers


# ------------------------------------------------------------------------------------------------ what is in the shards
def test_the_examples_are_those_that_were_written(tmp_path):
    (tmp_path / "photos").mkdir()
    rows = ["image,caption,split"]
    for i in range(25):
        noise = np.random.default_rng(i).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "photos" / f"a.{i}.jpg")
        rows += [f"a.{i}.jpg,Ä picture {i} {k},{'val' if i > 20 else 'train'}" for k in range(1 + i % 3)]
    (tmp_path / "photos" / "captions.csv").write_text("\n".join(rows), encoding="utf-8")
    written = Folder(str(tmp_path / "photos"))
    write_shards(written, tmp_path / "packed", per_shard=8)
    assert len(list((tmp_path / "packed" / "train").iterdir())) == 3  # and nothing unfinished beside them
    again = read(tmp_path / "packed")
    assert again.splits() == written.splits() == ("train", "val")
    for split in again.splits():
        one, other = again.examples(split), written.examples(split)
        assert [example.captions for example in one] == [example.captions for example in other]
        for mine, theirs in zip(one, other, strict=True):
            assert torch.equal(again.pixels(mine, 16), written.pixels(theirs, 16))
    assert one[-1].id == "val/00000/000000003" and [example.id for example in one[1:3]] == [one[1].id, one[2].id]
    how = {"size": 8, "resize": "crop", "interpolation": "bilinear"}
    assert torch.equal(again.picture(one[0], how), written.picture(other[0], how))
    with pytest.raises(UserError, match="holds shards already"):
        write_shards(written, tmp_path / "packed")
    with pytest.raises(UserError, match="no pictures with captions that could be written"):
        write_shards(again, tmp_path / "more")


def test_drawn_pictures_are_written_without_loss(tmp_path):
    scenes = Scenes(train=4, val=2, test=0, compositional=0)
    write_shards(scenes, tmp_path, size=40)
    source = read(tmp_path)
    assert source.examples("val")[1].captions == scenes.examples("val")[1].captions
    assert torch.equal(source.pixels(source.examples("train")[3], 40), scenes.pixels(scenes.examples("train")[3], 40))


def test_every_way_to_write_captions(tmp_path):
    entries = {
        "./a.png": picture(1), "./a.txt": "\ufeffone\n", "./a.json": "no JSON, and not needed",
        "b.jpg": picture(2), "b.json": '{"caption": "two", "captions": null}',
        "sub/c.PNG": picture(3), "sub/c.json": '{"captions": ["three", " . ", "drei"]}', "sub/c.npy": "0",
        "._a.png": "of another system", "README.md": "hello", "e.txt": "five", "e.cond.npy": "column", "e.cls": "7",
        "e.webp": picture(5), "f.png": picture(6), "f.txt": " .\n", "f.json": '{"caption": "six"}',
        "IMG_1.v2.jpg": picture(7), "IMG_1.v2.txt": "seven", "IMG_1.jpg": picture(8), "IMG_1.txt": "eight",
        "8.input.jpg": picture(9), "8.output.cls": "0", "8.caption.json": '{"caption": "nine"}',
        "sub.d/9.img.png": picture(10), "sub.d/9.cap.txt": "ten",
    }  # fmt: skip
    pack(tmp_path / "train.tar", entries)
    pack(tmp_path / "val.tar", pairs([1]))
    found = read(tmp_path, train="train.tar", val="val.tar").examples("train")
    assert [(e.id, e.captions) for e in found] == [
        ("train/a", ("one\n",)), ("train/b", ("two",)), ("train/sub/c", ("three", "drei")), ("train/e", ("five",)),
        ("train/f", ("six",)), ("train/IMG_1.v2", ("seven",)), ("train/IMG_1", ("eight",)), ("train/8", ("nine",)),
        ("train/sub.d/9", ("ten",)),
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ the order
def test_shuffled_and_the_same_for_any_number_of_workers(packed, tokenizer):
    orders = []
    for workers in (0, 1, 2):
        loader = batches(read(packed), tokenizer, workers=workers).train_dataloader()
        orders.append([[seen(batch) for batch in loader] for _ in range(2)])
    assert orders[0] == orders[1] == orders[2]
    first, second = ([*chain(*epoch)] for epoch in orders[0])
    assert first != second and len(set(first)) == len(first) == SHARDS * EACH // 4 * 4
    assert first != sorted(first) and set(first) <= set(range(SHARDS * EACH))
    mixed = {number // EACH for number in first[: 2 * EACH]}
    assert len(mixed) == 2 and len({number // EACH for number in first[:EACH]}) == 2  # two shards at a time, mixed
    other = batches(read(packed), tokenizer, seed=4).train_dataloader()
    assert [seen(batch) for batch in other] != orders[0][0]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 4), st.integers(1, 5), st.integers(1, 3))
def test_processes_share_all_examples_without_doubles(counts, window, size, world):
    ranks = [ShardOrder(np.array(counts), window, size, 7, rank, world).batches(2) for rank in range(world)]
    step, n = size * world, sum(counts)
    assert len({tuple(map(len, own)) for own in ranks}) == 1  # nobody waits for a batch that does not come
    everything = [i for own in ranks for batch in own for i in batch]
    if n < step:
        assert set(everything) == set(range(n)) and len(everything) < n + world
    else:
        assert len(set(everything)) == len(everything) == n // step * step
    together = ShardOrder(np.array(counts), window, step, 7).batches(2)
    assert [sorted(chain(*parts)) for parts in zip(*ranks, strict=True)] == [
        sorted(batch) if n >= step else sorted(np.resize(batch, len(everything))) for batch in together
    ]
    whole = ShardOrder(np.array(counts), window, size, 7, 0, world)
    for start in range(len(whole)):
        whole.epoch, whole.start = 2, start
        assert [batch for _, batch in whole] == ranks[0][start:]


@pytest.mark.parametrize(("workers", "stop"), [(0, 1), (0, 3), (0, 7), (2, 3), (2, 9)])
def test_resuming_in_the_middle_gives_the_rest(packed, tokenizer, workers, stop):
    def loader(**options):
        return batches(read(packed, **options), tokenizer, workers=workers).train_dataloader()

    def follow(one, count):
        """``count`` batches and the state after them."""
        found = []
        while len(found) < count:
            for batch in one:
                found.append(seen(batch))
                if len(found) == count:
                    return found, one.state_dict()

    whole, _ = follow(loader(), 14)  # two epochs of seven
    first, state = follow(loader(), stop)
    resumed = loader()
    resumed.load_state_dict(state)
    rest, _ = follow(resumed, 14 - stop)
    assert first + rest == whole
    with pytest.raises(UserError, match="window = 2 and this one has 3"):
        loader(window=3).load_state_dict(state)


def test_smaller_shares_lie_inside_larger_ones(packed, tokenizer):
    ids = [
        {example.id for example in batches(read(packed), tokenizer, train_fraction=share).examples("train")}
        for share in (0.01, 0.5, 1.0)
    ]
    assert ids[0] < ids[1] < ids[2] and [len(some) for some in ids] == [SHARDS, SHARDS * EACH // 2, SHARDS * EACH]
    loader = batches(read(packed), tokenizer, train_fraction=0.5, batch_size=3).train_dataloader()
    numbers = [number for batch in loader for number in seen(batch)]
    assert len(set(numbers)) == 15 and numbers != sorted(numbers)
    assert {f"{i:04d}" for i in numbers} == {id[-4:] for id in ids[1]}


# --------------------------------------------------------------------------------------------------------------- memory
def test_memory_does_not_grow_with_the_number_of_examples(tmp_path, tokenizer):
    sizes = []
    for each in (10, 60):
        data = batches(read(folder(tmp_path / str(each), SHARDS, each)), tokenizer)
        dataset = data._batches("train", 1)
        assert len(list(data.examples("train"))) == SHARDS * each
        sizes.append(len(pickle.dumps(dataset)))  # what a spawned worker gets, after all has been read
        assert data.source.reader._open.cache_info().currsize <= 4  # two windows
        assert seen(pickle.loads(pickle.dumps(dataset))[0, [3, 1]]) == [3, 1]
    assert sizes[0] + 20 > sizes[1] and sizes[1] < 3_000


def test_an_epoch_of_ten_million_is_not_drawn_up_at_once():
    order = ShardOrder(np.full(1_000, 10_000), 8, 256, 0)
    order.start = 20_000
    tracemalloc.start()
    for _, (_, batch) in zip(range(1_000), order, strict=False):
        assert len(batch) == 256
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20


# ------------------------------------------------------------------------------------------------------------ the index
def test_an_index_is_made_once_and_again_for_a_changed_shard(tmp_path, monkeypatch):
    root, scanned = folder(tmp_path), []
    scan = shard_index.scan
    monkeypatch.setattr(shard_index, "scan", lambda path, check: scanned.append(path.name) or scan(path, check))
    read(root).examples("train")
    assert len(scanned) == SHARDS + 1
    read(root).examples("train")
    assert len(scanned) == SHARDS + 1
    pack(root / "train" / "00002.tar", pairs(range(90, 93)))
    assert len(read(root).examples("train")) == (SHARDS - 1) * EACH + 3
    assert scanned[SHARDS + 1 :] == ["00002.tar"]
    for index in (root / "index").glob("00002-*.npz"):
        content = bytearray(index.read_bytes())
        content[content.index(b"rows.npy") + 300] ^= 1
        index.write_bytes(content)
    assert read(root).examples("train")[2 * EACH].captions == ("picture 90",) and scanned[SHARDS + 2 :] == ["00002.tar"]


def test_a_shard_that_changes_while_it_is_read_is_named(tmp_path):
    source = read(folder(tmp_path))
    examples = source.examples("train")
    example = examples[0]
    pack(tmp_path / "train" / "00001.tar", pairs(range(90, 96)))
    with pytest.raises(UserError, match=r"00001\.tar, or its index in .* has changed"):
        examples[EACH]
    os.truncate(tmp_path / "train" / "00000.tar", 520)
    with pytest.raises(UserError, match=r"00000\.tar has become shorter"):
        source.pixels(example, 8)


# ------------------------------------------------------------------------------------------------------------ bad input
def test_a_shard_cut_off_anywhere(tmp_path):
    """Under skip exactly the examples are used that are whole; under raise it is said where it ends."""
    whole = pack(tmp_path / "whole.tar", pairs(range(4))).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        ends = [m.offset_data + m.size for m in tar if m.name.endswith(".txt")]
        last = max(m.offset_data + m.size for m in tar)
    root = folder(tmp_path / "root", 1)
    for length in [*range(0, last, 1301), 512, 1024, last - 1, last + 511 & ~511]:
        (root / "train" / "00000.tar").write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"00000\.tar.* is damaged or cut off") as raised:
            read(root).examples("train")
        assert str(raised.value).isprintable()
        found = read(root, on_error="skip", max_skipped=1.0).examples("train")
        assert [example.captions[0] for example in found] == [f"picture {i}" for i, e in enumerate(ends) if e <= length]


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 30_000, b"no tar at all" * 100, gzip.compress(b"z", mtime=0), lzma.compress(b"z")]
)
def test_what_is_no_tar(tmp_path, content):
    root = folder(tmp_path)
    (root / "train" / "00003.tar").write_bytes(content)
    packed = {b"\x1f\x8b": "packed with gzip", b"\xfd7": "packed with xz"}.get(content[:2], "damaged")
    with pytest.raises(UserError, match=rf"00003\.tar: The shard is {packed}"):
        read(root).examples("train")
    source = read(root, on_error="skip", max_skipped=0.1)
    assert len(source.examples("train")) == (SHARDS - 1) * EACH and len(source.faults.skipped) == 1


def test_an_entry_of_negative_length_is_not_read_for_ever(tmp_path):
    root = folder(tmp_path, 1)
    path, back = root / "train" / "00000.tar", tarfile.TarInfo("back.png")
    back.size = -tarfile.BLOCKSIZE  # back to this header, again and again
    header = back.tobuf(tarfile.GNU_FORMAT)
    with tarfile.open(path) as tar:
        end = tar.getmembers()[-1].offset
    path.write_bytes(path.read_bytes()[:end] + header + bytes(10_240))
    with pytest.raises(UserError, match="damaged or cut off"):
        read(root).examples("train")


def test_many_threads_read_indexes_while_finalisers_run(packed):
    """In Python 3.11 the parser behind numpy's headers fails, where two threads are in it and one is interrupted."""

    class Slow:
        def __init__(self):
            self.me = self  # freed by the garbage collector, whenever that is

        def __del__(self):
            time.sleep(1e-4)

    def load(path):
        Slow()
        return len(shard_index.index_of(path, packed / "index", check=False).rows)

    files = sorted(packed.rglob("*.tar"))
    expected, before = [load(path) for path in files], gc.get_threshold()
    gc.set_threshold(3)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(load, 60 * files)) == 60 * expected
    finally:
        gc.set_threshold(*before)


def test_noise_in_a_shard_hides_nothing_silently(tmp_path):
    root = folder(tmp_path, 1)
    path, random = root / "train" / "00000.tar", np.random.default_rng(0)
    whole = path.read_bytes()
    for _ in range(40):
        content, where = bytearray(whole), int(random.integers(0, len(whole) - 512))
        content[where : where + 512] = random.bytes(512)
        path.write_bytes(content)
        source = read(root, on_error="skip", max_skipped=1.0)
        found = [example.captions[0] for example in source.examples("train")]
        captions = [f"picture {i}" for i in range(EACH)]
        assert found == captions or (source.faults.skipped and set(found) < set(captions))


def test_a_shard_of_other_entries_says_what_it_holds(tmp_path):
    root = folder(tmp_path)
    pack(root / "train" / "00001.tar", {f"{i}.npy": "0" for i in range(3)})
    with pytest.raises(UserError, match=r"00001\.tar: .*neither pictures nor captions: its entries end in \.npy"):
        read(root).examples("train")


BROKEN = {
    "a damaged picture": ({"x.png": picture(1)[:40], "x.txt": "a"}, "damaged", True),
    "a bomb": ({"x.png": png(100_000, 100_000), "x.txt": "a"}, "far more pixels", True),
    "no caption": ({"x.png": picture(1)}, r"no \.txt or \.json", False),
    "other captions": (
        {"x.png": picture(1), "x.cap": "a"},
        r"no \.txt or \.json of this name, only \.cap, a pict",
        False,
    ),
    "neither": ({"x.img": picture(1), "x.cap": "a"}, r"no picture of this name, only \.cap, \.img", False),
    "a column without its own caption": ({"x.v2.png": picture(1)}, r"no \.txt or \.json", False),
    "another picture of an example": ({"0006.seg.png": picture(1)}, r"entry 0006\.seg: There is no \.txt", False),
    "columns of one kind": ({"x.a.png": picture(1), "x.b.png": picture(1), "x.txt": "a"}, "Two pictures", False),
    "no picture": ({"x.txt": "a dog"}, "no picture", False),
    "an empty caption": ({"x.png": picture(1), "x.txt": " . \n"}, "no caption", False),
    "no UTF-8": ({"x.png": picture(1), "x.txt": "schön".encode("latin-1")}, "no UTF-8", False),
    "no JSON": ({"x.png": picture(1), "x.json": "{"}, "is expected", False),
    "other JSON": ({"x.png": picture(1), "x.json": '{"caption": null}'}, "caption is missing", False),
    "a long text": ({"x.png": picture(1), "x.txt": "a" * 2_000_000}, "2,000,000 bytes", False),
    "two pictures": ({"x.png": picture(1), "x.jpg": picture(1), "x.txt": "a"}, "Two pictures", False),
    "a way out": ({"../../x.png": picture(1), "../../x.txt": "a"}, "leads out", False),
    "a root": ({"/x.png": picture(1), "/x.txt": "a"}, "leads out", False),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_entry_that_cannot_be_used(case, tmp_path):
    entries, reason, in_the_picture = BROKEN[case]
    root = folder(tmp_path)
    pack(root / "train" / "00001.tar", {**pairs(range(6, 9)), **entries, **pairs(range(9, 12))})
    source = read(root)
    with pytest.raises(UserError, match=reason) as raised:
        for example in source.examples("train"):
            source.pixels(example, 8)
    where = "train/00001/x" if in_the_picture else "00001.tar, "
    assert str(raised.value).isprintable() and where in str(raised.value)
    for _ in range(2):  # the second time from the index
        source = read(root, on_error="skip", max_skipped=0.1)
        assert [e.captions for e in source.examples("train")] == [(f"picture {i}",) for i in range(SHARDS * EACH)]
        assert len(source.faults.skipped) == 1
    with pytest.raises(UserError, match=r"1 of the \d+ examples in .* cannot be used"):
        read(root, on_error="skip", max_skipped=0.02).examples("train")


WRONG = {
    "a missing folder": ({"root": "nowhere"}, "folder of shards nowhere does not exist"),
    "an empty pattern": ({"train": "0*.tar"}, r"data\.source\.train=0\*\.tar names no shard"),
    "a packed shard": ({"train": "packed"}, r"packed/00000\.tar\.gz: The shard is packed; unpack it"),
    "a number": ({"train": 64}, "train=64 names no shard"),
    "an empty list": ({"val": []}, r"val=\[\] names no shard.*or null"),
    "a missing shard": ({"train": "train/{00003..00005}.tar"}, r"00005\.tar: The shard, which .* names, is missing"),
    "a range that goes backward": ({"train": "{5..3}.tar"}, "is no range"),
    "an endless range": ({"train": "{0..99999999}.tar"}, "is no range"),
    "a way out": ({"train": "../x.tar"}, "no path inside"),
    "another root": ({"train": "/etc/x.tar"}, "no path inside"),
    "the same in two splits": ({"val": ["val", "train/00001.tar"]}, r"train/00001\.tar is in two splits"),
    "no window": ({"window": 0}, "window must be a whole number of at least 1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_shards_that_are_not_there(case, packed):
    options, words = WRONG[case]
    pack(packed / "packed" / "00001.tar", pairs([1]))
    (packed / "packed" / "00000.tar.gz").touch()
    with pytest.raises(UserError, match=words):
        Shards(**{"root": str(packed), "train": "train", "val": "val", **options})


def test_every_way_to_name_shards(packed):
    wanted = [f"train/{i:05d}" for i in range(1, 4)]
    listed = [f"{name}.tar" for name in wanted]
    for words in ("train/{00001..00003}.tar", "train/0000[1-3].tar", listed, "./train/0000[123]*"):
        assert read(packed, train=words)._names["train"] == wanted
    assert expand("a{1..2}/{08..10}.tar") == [f"a{i}/{k}.tar" for i in "12" for k in ("08", "09", "10")]
    lenient = read(packed, train="train/{00003..00005}.tar", on_error="skip", max_skipped=0.1)
    assert len(lenient.examples("train")) == 2 * EACH and "missing" in lenient.faults.skipped[0]["reason"]


# ------------------------------------------------------------------------------------------------------------- training
@pytest.mark.slow
def test_a_killed_training_on_shards_ends_where_it_would_have_ended(tmp_path):
    """The real command with two loading processes and a frozen encoder, whose output is not cached."""
    write_shards(Scenes(train=41, val=5, test=4, compositional=0), tmp_path / "shards", per_shard=10, size=32)
    arguments = [
        *("debug=smoke", "data=shards", f"data.root={tmp_path}/shards", f"data.cache_dir={tmp_path}/index"),
        *(f"data.source.{split}={split}" for split in ("train", "val", "test")),
        *("data.workers=2", "data.source.window=2", "data.batch_size=4", "trainer.max_steps=16", "resume=auto"),
        *("vision.width=16", "vision.layers=3", "vision.heads=2", "vision.image_size=32", "language.model.heads=2"),
        *("language.model.width=16", "language.model.layers=2", "language.tokenizer.vocabulary=300"),
        *("regime.train_vision=false", "fusion=clipcap", "decode=greedy", "trainer.log_every_n_steps=1"),
    ]
    pack(tmp_path / "shards" / "empty" / "00000.tar", {})
    trainings = Trainings()
    try:
        status, said = trainings.run(tmp_path / "empty" / "run", *arguments, "data.source.test=empty")
        assert status == 2 and "no examples in its split 'test'" in said, said
        assert not (tmp_path / "empty" / "run.steps").exists()  # it is said before the training
        status, said = trainings.run(tmp_path / "whole" / "run", *arguments)
        assert status == 0, said
        status, said = trainings.run(tmp_path / "killed" / "0", *arguments, kill=(signal.SIGTERM, 6, True))
        assert status == 128 + signal.SIGTERM and "Traceback" not in said, said
        status, said = trainings.run(tmp_path / "killed" / "1", *arguments)
        assert status == 0 and (tmp_path / "killed" / "1" / "log" / "before-1.csv").is_file(), said
    finally:
        trainings.close()
    assert_same(ended_at(tmp_path / "whole" / "run"), ended_at(tmp_path / "killed" / "1"))
    assert all(path.suffix == ".npz" for path in (tmp_path / "index").iterdir())
