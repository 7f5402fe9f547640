"""``python -m src.score`` as a user types it."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from src.errors import UserError
from src.metrics.ptb import tokenize
from src.metrics.tokens import unspaced
from src.score import find_images

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = json.loads((ROOT / "tests" / "golden" / "captions.json").read_text(encoding="utf-8"))
FIXTURE = os.environ.get("CAPTION_METRIC_FIXTURE")


def score(folder: Path, *arguments: str, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-m", "src.score", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout)


@pytest.fixture
def files(tmp_path) -> Path:
    """A folder with p.json (COCO results) and r.json (Karpathy, of which only the split test is predicted)."""
    rows = [{"image_id": id, "caption": caption} for id, caption in GOLDEN["predictions"].items()]
    images = [
        {"filename": f"{id}.jpg", "imgid": number, "split": "test", "sentences": [{"raw": text} for text in texts]}
        for number, (id, texts) in enumerate(GOLDEN["references"].items())
    ]
    images.append({"filename": "other.jpg", "imgid": 99, "split": "train", "sentences": [{"raw": "Not predicted."}]})
    (tmp_path / "p.json").write_text(json.dumps(rows))
    (tmp_path / "r.json").write_text(json.dumps({"images": images}))
    return tmp_path


def test_table_and_metrics_beside_the_predictions(files):
    answer = score(files, "predictions=p.json", "references=r.json", "split=test")
    assert answer.returncode == 0 and not answer.stderr
    metrics = json.loads((files / "p.metrics.json").read_text())
    assert metrics["split"] == "test" and metrics["pictures"] == 8 and metrics["cost"] == {}
    assert {name: metrics["scores"][name] for name in GOLDEN["corpus"]} == pytest.approx(GOLDEN["corpus"], abs=1e-6)
    assert f"{'CIDEr-D':<12}{GOLDEN['corpus']['CIDEr-D']:>10.4f}" in answer.stdout
    assert "note: CIDEr-D of only 8 pictures" in answer.stdout and "written: p.metrics.json" in answer.stdout
    assert sorted(path.name for path in files.iterdir()) == ["p.json", "p.metrics.json", "r.json"]


def scored(folder: Path, *arguments: str) -> tuple[dict, str]:
    """metrics.json, and what is printed."""
    answer = score(folder, *arguments, "output=o.json")
    assert answer.returncode == 0, answer.stderr
    return json.loads((folder / "o.json").read_text()), answer.stdout


def test_scores_over_a_part_are_counted(files):
    """Left out: as if the others were all there are, their document frequencies too. Empty: a caption of no words."""
    whole, shown = scored(files, "predictions=p.json", "references=r.json", "split=test")
    assert "unpredicted" not in whole and "no prediction" not in shown
    part, shown = scored(files, "predictions=p.json", "references=r.json", "missing=score_predicted")
    count = {"count": 1, "of": 9, "missing": "score_predicted"}
    assert part["scores"] == whole["scores"] and part["pictures"] == 8 and part["unpredicted"] == count
    assert "note: 1 of 9 pictures have no prediction (left out, of the document frequencies too)." in shown
    empty, shown = scored(files, "predictions=p.json", "references=r.json", "missing=empty")
    assert empty["pictures"] == 9 and empty["unpredicted"] == {**count, "missing": "empty"}
    assert empty["scores"]["ROUGE-L"] == pytest.approx(whole["scores"]["ROUGE-L"] * 8 / 9)
    assert "note: 1 of 9 pictures have no prediction (scored as empty captions)." in shown


def test_the_kind_of_id_is_told_and_a_runs_own_is_taken(files):
    """Pictures named by numbers whose imgid is another number: guessing either would score captions of others."""
    rows = [{"image_id": number, "caption": caption} for number, caption in enumerate(GOLDEN["predictions"].values())]
    texts = list(GOLDEN["references"].values())
    images = [
        {"filename": f"{n}.jpg", "imgid": (n + 1) % len(texts), "sentences": [{"raw": text} for text in texts[n]]}
        for n in range(len(texts))
    ]
    run = [{"id": str(row["image_id"]), "caption": row["caption"], "references": ["x"]} for row in rows]
    (files / "n.json").write_text(json.dumps(rows))
    (files / "k.json").write_text(json.dumps({"images": images}))
    (files / "predictions.jsonl").write_text("\n".join(map(json.dumps, run)))
    answer = score(files, "predictions=n.json", "references=k.json")
    assert answer.returncode == 2 and "ids=file_stem or ids=imgid says which is right." in answer.stderr
    for arguments in (["predictions=n.json", "ids=file_stem"], ["predictions=predictions.jsonl"]):
        metrics, shown = scored(files, *arguments, "references=k.json")
        assert metrics["ids"] == "file_stem" and "ids: file_stem" in shown
        assert metrics["scores"]["CIDEr-D"] == pytest.approx(GOLDEN["corpus"]["CIDEr-D"], abs=1e-6)


CHINESE = {
    "1": ("一只棕色的狗在草地上奔跑。", "一条狗在草地上奔跑"),
    "2": ("两个男孩在海边踢足球。", "两名男孩在海边踢足球"),
    "3": ("一个女人骑着红色的自行车。", "一名女人骑着红色自行车"),
}


def test_captions_without_spaces_are_told_and_scored_by_characters(files):
    """As if every character were a word that stands between spaces."""
    (files / "p.json").write_text(json.dumps({id: said for id, (_, said) in CHINESE.items()}))
    (files / "r.json").write_text(json.dumps({id: [known] for id, (known, _) in CHINESE.items()}))
    (files / "ps.json").write_text(json.dumps({id: " ".join(said) for id, (_, said) in CHINESE.items()}))
    (files / "rs.json").write_text(json.dumps({id: [" ".join(known)] for id, (known, _) in CHINESE.items()}))
    words, shown = scored(files, "predictions=p.json", "references=r.json")
    assert words["scores"]["CIDEr-D"] == 0 and words["tokens"] == "words"
    assert "no spaces between words" in words["notes"]["tokens"] and "note: these captions have no spaces" in shown
    spaced, shown = scored(files, "predictions=ps.json", "references=rs.json")
    assert spaced["scores"]["CIDEr-D"] > 1 and "notes" not in spaced and "tokens" not in shown
    characters, shown = scored(files, "predictions=p.json", "references=r.json", "tokens=characters")
    assert characters["scores"] == spaced["scores"] and characters["tokens"] == "characters"
    assert "notes" not in characters and "tokens: characters, so that these scores compare" in shown
    answer = score(files, "predictions=p.json", "references=r.json", "tokens=characters", "metrics=[meteor]")
    assert answer.returncode == 2 and "METEOR reads English words, so it does not go with tokens=" in answer.stderr


@pytest.mark.parametrize(
    ("captions", "told"),
    [
        (["一只棕色的狗", "两个男孩在海边"], True),
        (["一 只 棕色 的 狗"], False),
        (["オレンジ色の猫が寝ている"], True),
        (["สุนัขวิ่งบนหญ้า"], True),
        (["สุนัข วิ่ง บน หญ้า"], False),
        (["a dog", "ein Hund läuft", "собака бежит", "Rindfleischetikettierung"], False),
        (["a sign that says 一只棕色的狗在草地", "a dog on the grass beside it"], False),
        (["", "   "], False),
    ],
)
def test_which_captions_have_no_spaces(captions, told):
    assert unspaced(captions) is told


def test_references_inside_the_predictions(files):
    entries = [
        {"image_name": f"{id}.jpg", "captions": GOLDEN["references"][id], "prediction": caption}
        for id, caption in GOLDEN["predictions"].items()
    ]
    (files / "magic.json").write_text(json.dumps(entries))
    metrics, shown = scored(files, "predictions=magic.json")
    assert metrics["ids"] is None and "the predictions bring their references" in shown
    assert metrics["scores"]["CIDEr-D"] == pytest.approx(GOLDEN["corpus"]["CIDEr-D"], abs=1e-6)
    answer = score(files, "predictions=magic.json", "split=test")
    assert answer.returncode == 2 and "split=test is about references=<file>, and there is none." in answer.stderr


@pytest.mark.parametrize(("output", "written"), [("new/folder", "new/folder/metrics.json"), ("own.json", "own.json")])
def test_output_may_be_a_folder_or_a_file(files, output, written):
    assert score(files, "predictions=p.json", "references=r.json", "split=test", f"output={output}").returncode == 0
    assert "CIDEr-D" in json.loads((files / written).read_text())["scores"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "predictions=<file> is missing"),
        (["predictions=p.json"], "references=<file> is missing"),
        (["predictions=nowhere.json", "references=r.json"], "nowhere.json can't be read: No such file or directory."),
        (
            ["predictions=p.json", "references=r.json"],
            "1 of 9 pictures have no prediction, for example other; missing=score_predicted leaves them out",
        ),
        (["predictions=p.json", "references=r.json", "missing=ignore"], "missing must be refuse, score_predicted or"),
        (["predictions=p.json", "references=r.json", "ids=number"], "ids must be cocoid, image_id, id, imgid, file_"),
        (["predictions=p.json", "references=r.json", "ids=cocoid"], "ids=cocoid is no name that all pictures of r."),
        (
            ["predictions=p.json", "references=r.json", "split=val"],
            "has no split val; it has test (8), train (1).",
        ),
        (["predictions=r.json", "references=p.json"], "r.json should hold a list of"),
        (["predictions=p.json", "references=r.json", "metrics=[spce]"], "metrics must be meteor, spice or clipscore"),
        (["predictions=p.json", "references=r.json", "split=test", "images=none"], "images=none is no folder."),
    ],
)
def test_mistakes_are_one_sentence(files, arguments, message):
    answer = score(files, *arguments)
    assert answer.returncode == 2 and answer.stdout == ""
    assert answer.stderr.startswith("error: ") and message in answer.stderr and answer.stderr.count("\n") == 1
    assert sorted(path.name for path in files.iterdir()) == ["p.json", "r.json"]


def test_metrics_that_cannot_run_are_null_with_a_reason(files):
    answer = score(
        files, "predictions=p.json", "references=r.json", "split=test", "metrics=[meteor,spice,clipscore]", PATH=""
    )
    assert answer.returncode == 0 and not answer.stderr
    metrics = json.loads((files / "p.metrics.json").read_text())
    assert {name for name, value in metrics["scores"].items() if value is None} == set(metrics["missing"])
    assert set(metrics["missing"]) == {"METEOR", "SPICE", "CLIPScore", "RefCLIPScore"} and "notes" not in metrics
    assert f"{'SPICE':<12}{'-':>10}\n" in answer.stdout
    assert "note: SPICE needs Java" in answer.stdout and answer.stdout.count("none are given") == 1


def test_clipscore_with_random_weights_is_labelled(files):
    """Pictures are found by name in subfolders."""
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
    }
    (files / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    (files / "images" / "deep").mkdir(parents=True)
    for number, id in enumerate(GOLDEN["predictions"]):
        Image.new("RGB", (20, 30), (9 * number, 200, 90)).save(files / "images" / "deep" / f"{id}.jpg")
    arguments = ["predictions=p.json", "references=r.json", "split=test", "metrics=clipscore", "images=images"]
    answer = score(files, *arguments, f"clip.model=local-dir:{files}", "clip.pretrained=null")
    assert answer.returncode == 0, answer.stderr
    metrics = json.loads((files / "p.metrics.json").read_text())
    assert isinstance(metrics["scores"]["RefCLIPScore"], float) and "missing" not in metrics
    assert "means nothing" in metrics["notes"]["CLIPScore"]
    assert any(line.startswith("CLIPScore ") and "means nothing" in line for line in answer.stdout.splitlines())


@pytest.mark.parametrize(
    ("names", "ids", "found"),
    [
        (["a.jpg", "b.PNG", "notes.txt"], ["a", "b.PNG"], ["a.jpg", "b.PNG"]),
        (["val/COCO_val2014_000000000042.jpg", "000000000007.jpg"], ["42", "7"], None),
        (["42.jpg", "COCO_val2014_000000000042.jpg"], ["42"], ["42.jpg"]),  # the name itself comes first
        (["one/a.jpg", "two/a.jpg"], ["two/a.jpg"], ["two/a.jpg"]),
        (["one/a.jpg", "two/a.jpg"], ["a.jpg"], "holds 2 pictures for the id a.jpg"),
        (["x_42.jpg"], ["42"], "holds no pictures for the id 42"),
    ],
)
def test_pictures_by_id(tmp_path, names, ids, found):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    if isinstance(found, str):
        with pytest.raises(UserError, match=found):
            find_images(tmp_path, ids)
    else:
        expected = [tmp_path / name for name in found or names]
        assert list(find_images(tmp_path, ids).values()) == expected


SYSTEMS = ["flickr30k_magic_result", "mscoco_baselines_mscoco_in_domain_clipretrieval"]
NAMES = {
    **{f"BLEU-{n}": f"Bleu_{n}" for n in range(1, 5)},
    "ROUGE-L": "ROUGE_L",
    "CIDEr-D": "CIDEr",
    "METEOR": "METEOR",
}


@pytest.mark.slow
@pytest.mark.skipif(not FIXTURE, reason="CAPTION_METRIC_FIXTURE names no folder with the metric fixture")
@pytest.mark.parametrize("java", [True, False])
@pytest.mark.parametrize("name", SYSTEMS)
def test_known_scores_of_real_systems_with_and_without_java(tmp_path, name, java):
    """From their result files to every digit of the known scores, through the command."""
    if java and shutil.which("java") is None:
        pytest.skip("no Java here")
    entries = json.loads((Path(FIXTURE) / f"{name}.json").read_text())
    rows = [{"image_id": number, "caption": entry["prediction"]} for number, entry in enumerate(entries)]
    annotations = [{"image_id": n, "caption": text} for n, entry in enumerate(entries) for text in entry["captions"]]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    (tmp_path / "r.json").write_text(json.dumps({"annotations": annotations}))
    path = {} if java else {"PATH": ""}
    answer = score(tmp_path, "predictions=p.json", "references=r.json", "metrics=[meteor]", timeout=600, **path)
    assert answer.returncode == 0, answer.stderr
    scores = json.loads((tmp_path / "p.metrics.json").read_text())["scores"]
    known = json.loads((Path(FIXTURE) / "expected_scores.json").read_text())[name]["recomputed_pycocoevalcap_1.2"]
    wanted = NAMES if java else {ours: theirs for ours, theirs in NAMES.items() if ours != "METEOR"}
    assert {ours: scores[ours] for ours in wanted} == pytest.approx({k: known[v] for k, v in wanted.items()}, abs=1e-9)
    assert java or scores["METEOR"] is None


@pytest.mark.skipif(not FIXTURE, reason="CAPTION_METRIC_FIXTURE names no folder with the metric fixture")
@pytest.mark.parametrize("name", SYSTEMS)
def test_our_tokens_are_those_written_down_by_java(name):
    """The fixture's tokens came from COCO's Java tokenizer, so that no Java is needed to compare with it."""
    entries = json.loads((Path(FIXTURE) / f"{name}.json").read_text())
    theirs = json.loads(gzip.decompress((Path(FIXTURE) / f"{name}.ptb_tokenized.json.gz").read_bytes()))
    pairs = [
        (caption, tokens)
        for entry, references, prediction in zip(entries, theirs["gts"].values(), theirs["res"].values(), strict=True)
        for caption, tokens in zip([*entry["captions"], entry["prediction"]], [*references, *prediction], strict=True)
    ]
    assert len(pairs) >= 6000
    wrong = [(caption, tokens, tokenize(caption)) for caption, tokens in pairs if tokenize(caption) != tokens]
    assert len(wrong) <= 3, wrong


def test_a_mistyped_key_is_named(files):
    answer = score(files, "prediction=p.json", "references=r.json")
    assert answer.returncode != 0 and "did you mean predictions?" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_starts_without_torch(files):
    """A mistake must show at once; loading torch alone takes seconds."""
    code = "import sys, src.score; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
