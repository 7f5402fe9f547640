"""``python -m src.report``: what the page says against what the runs say, and the page in a real browser."""

from __future__ import annotations

import html
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random
from urllib.parse import quote
from xml.etree import ElementTree

import pytest
from omegaconf import OmegaConf
from PIL import Image

from src.comparison.arms import Comparison, compare
from src.comparison.estimates import Cell, Difference
from src.comparison.plan import Plan
from src.comparison.runs import Arm, find_runs, group
from src.comparison.seeds import SeedTest, Verdict, unplanned
from src.data.scenes import Scenes
from src.reporting import plots
from src.reporting.gallery import gallery
from src.reporting.marks import FALSE, PLAIN, TRUE, UNKNOWN, marks
from src.reporting.numbers import cost_of, leaders
from src.reporting.page import embedded, page
from src.scenes.check import check
from src.scenes.world import Scene, Thing

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium")
EVIL = (
    "</script><script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\"> & 'q' \u2028 end"
)
ARABIC, EMOJI = "كلب يركض\u202e txet", "a \U0001f415 on \U0001f6f9\ufe0f"


# --------------------------------------------------------------------------------------------------------------------
# runs made by hand
# --------------------------------------------------------------------------------------------------------------------
def write_run(folder: Path, fusion: str, rows: list[dict], seed: int = 0, source: dict | None = None, **config) -> Path:
    """A finished run as src.train leaves it, as far as a report reads it."""
    folder.mkdir(parents=True)
    source = source or {"_target_": "src.data.scenes.Scenes", "test": len(rows)}
    content = {
        "seed": seed,
        "data": {"source": source, "train_fraction": 1.0, **config},
        "fusion": {"_target_": f"src.fusion.{fusion}.Fusion"},
    }
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(content)))
    cost = {
        "parameters": {"trainable": 1000 * len(fusion), "total": 2_810_000},
        "training_flops": 23_500_000_000 + len(fusion),
        "step_ms": 100.0 + 10 * seed,
        "train_seconds": 300.0,
        "captions_per_second": 50.0,
        "peak_memory_mb": None if fusion == "blind" else 1448.0,
    }
    metrics = {"split": "test", "pictures": len(rows), "scores": {}, "cost": cost}
    metrics |= {"references_sha256": "ab" * 32, "decoding": {"method": "BeamSearch", "beams": 5}}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    environment = {
        "commit": "0123456789abcdef",
        "uncommitted_changes": True,
        "command": f"python -m src.train f={fusion}",
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "log").mkdir()
    logged = "".join(f"{step},{3 - step / 100 - seed / 10},{2 - step / 100}\n" for step in range(0, 100, 10))
    (folder / "log" / "metrics.csv").write_text("step,train/loss,val/loss\n" + logged)
    return folder


def scene_rows(count: int, noise: float, seed: int) -> list[dict]:
    """Rows on the first test pictures; a share ``noise`` of the captions is that of another picture."""
    examples, chance = Scenes(test=count).examples("test")[:], Random(seed)
    rows = []
    for example in examples:
        said = chance.choice(chance.choice(examples).captions if chance.random() < noise else example.captions)
        verdict = check(said, Scene.from_dict(example.extra["scene"]))
        score = {"truth": float(verdict.entirely_true), "CIDEr-D": round(10 * chance.random(), 5)}
        rows.append({"id": example.id, "caption": said, "references": list(example.captions), **score})
    return rows


@pytest.fixture
def runs(tmp_path) -> Path:
    """Three arms on twelve scenes: blind, and clipcap and flamingo with two seeds."""
    for number, (fusion, noise) in enumerate([("blind", 1.0), ("clipcap", 0.5), ("flamingo", 0.0)]):
        for seed in range(1 if fusion == "blind" else 2):
            write_run(tmp_path / "runs" / f"{fusion}{seed}", fusion, scene_rows(12, noise, 10 * number + seed), seed)
    return tmp_path / "runs"


def arms_of(runs: Path) -> list[Arm]:
    return group(find_runs(str(runs)))


def build(runs: Path, folder: Path, limit: int | None = None) -> Path:
    """The page of ``runs`` as a file; few resamples, because the statistics have their own tests."""
    arms = arms_of(runs)
    folder.mkdir(exist_ok=True)
    path = folder / "index.html"
    path.write_text(page(compare(arms, resamples=200), *gallery(arms, limit=limit)), encoding="utf-8")
    return path


def data_of(text: str) -> dict:
    """What report.js will read."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


# --------------------------------------------------------------------------------------------------------------------
# the gallery's data
# --------------------------------------------------------------------------------------------------------------------
def test_gallery_is_what_the_runs_wrote(runs):
    arms = arms_of(runs)
    data, notes = gallery(arms)
    assert notes == [] and data["arms"] == ["blind", "clipcap", "flamingo"] and data["more"] == 0
    for number, arm in enumerate(arms):
        rows = arm.runs[0].rows
        assert arm.runs[0].seed == 0 and data["ids"] == [row["id"] for row in rows]
        assert data["captions"][number] == [row["caption"] for row in rows]
        for metric, scores in zip(data["metrics"], data["scores"], strict=True):
            assert scores[number] == pytest.approx([row[metric] for row in rows], abs=1e-4)
    assert data["refs"] == [row["references"] for row in arms[0].runs[0].rows]
    assert len(data["pictures"]) == 12 and all(url.startswith("data:image/webp;base64,") for url in data["pictures"])
    assert max(map(len, data["pictures"])) < 8000


def test_parts_of_scores_are_no_scores_of_a_picture(tmp_path):
    rows = [{**row, "nats": 60.5, "tokens_read": 20, "facts": 3} for row in scene_rows(4, 0.5, 1)]
    write_run(tmp_path / "runs" / "a", "clipcap", rows)
    assert gallery(arms_of(tmp_path / "runs"))[0]["metrics"] == ["truth", "CIDEr-D"]


def test_marks_agree_with_the_verdicts_of_every_caption(runs):
    data, _ = gallery(arms_of(runs))
    scenes = [Scene.from_dict(example.extra["scene"]) for example in Scenes(test=12).examples("test")[:]]
    seen = set()
    for captions, of_arm in zip(data["captions"], data["marks"], strict=True):
        for caption, runs_of, scene in zip(captions, of_arm, scenes, strict=True):
            assert sum(runs_of[::2]) == len(caption)
            assert (FALSE in runs_of[1::2]) == (not all(check(caption, scene).truths))
            seen |= set(runs_of[1::2])
    assert seen == {PLAIN, TRUE, FALSE}


SCENE = Scene((Thing("circle", "red", "small", 0.2, 0.5, 0.1), Thing("star", "blue", "large", 0.8, 0.5, 0.2)), "dark")


@pytest.mark.parametrize(
    ("caption", "marked"),
    [
        ("a small red circle", "a [small] [red] [circle]"),
        ("a big green circle, on a dark background", "a !big! !green! [circle], [on] a [dark] [background]"),
        ("a red circle is left of a blue star", "a [red] [circle] is [left] [of] a [blue] [star]"),
        ("a red circle above a blue star", "a [red] [circle] !above! a [blue] [star]"),
        ("three shapes with a blue star", "!three! !shapes! with a [blue] [star]"),
        ("one circle and one star", "[one] [circle] and [one] [star]"),
        ("a star with a circle to its left", "a [star] with a [circle] [to] [its] [left]"),
        ("a red circle and the circle is left of", "a [red] [circle] and the [circle] is !left! !of!"),
        ("a dog and circles", "a ?dog? and ?circles?"),
        ("İ \U0001f415 a RED circle", "?İ? \U0001f415 a [RED] [circle]"),
        ("", ""),
    ],
)
def test_words_are_marked_where_they_stand(caption, marked):
    place, shown = 0, ""
    found = marks(caption, SCENE)
    for length, mark in zip(found[::2], found[1::2], strict=True):
        left, right = {PLAIN: ("", ""), TRUE: "[]", FALSE: "!!", UNKNOWN: "??"}[mark]
        shown, place = f"{shown}{left}{caption[place : place + length]}{right}", place + length
    assert shown == marked and place == len(caption)


def test_any_word_salad_gets_marks_that_fit_its_verdict():
    salad = "a the one two small big red blue circle star circles shape is are and left of to above it its alone dark "
    salad = (salad + "background on dog x, . \U0001f600 İ").split()
    chance = Random(0)
    for _ in range(2000):
        caption = " ".join(chance.choice(salad) for _ in range(chance.randrange(14)))
        verdict, found = check(caption, SCENE), set(marks(caption, SCENE)[1::2])
        assert (FALSE in found) == (not all(verdict.truths)), caption
        assert UNKNOWN not in found or verdict.reading.leftovers, caption


def test_limit_pictures_on_purpose_and_data_that_are_not_here(runs, tmp_path):
    data, notes = gallery(arms_of(runs), limit=5)
    assert len(data["ids"]) == len(data["pictures"]) == 5 and data["more"] == 7
    data, notes = gallery(arms_of(runs), pictures=False)
    assert data["pictures"] is None and data["marks"] and "pictures=false" in notes[0]
    source = {"_target_": "src.data.folder.Folder", "root": str(tmp_path / "nowhere")}
    away = tmp_path / "away"
    write_run(away / "a", "clipcap", scene_rows(5, 0.5, 1), source=source)
    data, notes = gallery(arms_of(away))
    assert data["pictures"] is None and data["marks"] is None and len(data["ids"]) == 5
    assert len(notes) == 1 and "Without pictures" in notes[0] and "nowhere" in notes[0]


def test_photographs_keep_their_proportions_and_a_damaged_one_is_named(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (400, 200), "red").save(photos / "wide.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.new("RGB", (400, 200), "red").save(photos / "turned.jpg", exif=exif)
    (photos / "broken.jpg").write_bytes(b"not a picture")
    names = ["wide", "turned", "broken"]
    (photos / "captions.csv").write_text("image,caption,split\n" + "".join(f"{n}.jpg,a thing,test\n" for n in names))
    source = {"_target_": "src.data.folder.Folder", "root": str(photos)}
    write_run(tmp_path / "runs" / "a", "clipcap", folder_rows(source), source=source)
    data, notes = gallery(arms_of(tmp_path / "runs"))
    sizes = dict(zip(data["ids"], map(size_of, data["pictures"]), strict=True))
    assert sorted(map(str, sizes.values())) == sorted(["(256, 128)", "(128, 256)", "None"])
    assert len(notes) == 1 and "broken.jpg" in notes[0] and data["marks"] is None


def folder_rows(source: dict) -> list[dict]:
    from src.config.make import make

    examples = make(OmegaConf.create(source)).examples("test")
    return [{"id": e.id, "caption": "a thing", "references": ["a thing"], "CIDEr-D": 1.0} for e in examples]


def size_of(url: str | None) -> tuple[int, int] | None:
    import base64
    import io

    return url and Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).size


def test_explain_figures_come_along(runs):
    folder = runs / "clipcap0" / "explain"
    folder.mkdir()
    Image.new("RGB", (1800, 900)).save(folder / "occlusion-test-000002.png")
    Image.new("RGB", (1800, 900)).save(folder / "attention-test-000003.png")
    data, _ = gallery(arms_of(runs))
    assert [sorted(of_arm) for of_arm in data["figures"]] == [[], [2, 3], []]
    assert size_of(data["figures"][1][3]) == (900, 450)
    assert gallery(arms_of(runs), pictures=False)[0]["figures"] == [{}, {}, {}]


# --------------------------------------------------------------------------------------------------------------------
# the page
# --------------------------------------------------------------------------------------------------------------------
def difference(arm: str, other: str, value: float, p: float) -> Difference:
    """Over seeds twice as wide as over images; ``p`` of both tests."""
    seeds = SeedTest(2, 0, value, 0.05, value - 0.2, value + 0.2, p, 0.3)
    return Difference(arm, other, "CIDEr-D", value, value - 0.1, value + 0.1, p / 2, p, seeds, unplanned(seeds))


@pytest.fixture
def comparison(runs) -> Comparison:
    """Hand-made numbers over the arms of ``runs``: flamingo best, clipcap within noise of it, blind far behind."""
    arms = tuple(arms_of(runs))
    means = {"blind": 0.111, "clipcap": 0.777, "flamingo": 0.888}
    cells = {
        (label, "CIDEr-D"): Cell(
            mean, None if label == "blind" else 0.0123, mean - 0.05, mean + 0.05, (mean, mean + 0.01)
        )
        for label, mean in means.items()
    }
    differences = (
        difference("clipcap", "blind", 0.666, 0.0004),
        difference("flamingo", "blind", 0.777, 0.0004),
        difference("clipcap", "flamingo", -0.111, 0.25),
    )
    notes = ("Mind <the> gap.",)
    return Comparison(arms, ("CIDEr-D",), "blind", "test", 12, 200, cells, differences, notes, Plan((), "CIDEr-D"))


def text_of(fragment: str) -> str:
    return html.unescape(
        re.sub(r"\s+", " ", re.sub(r"<(title|style|script).*?</\1>|<[^>]*>", " ", fragment, flags=re.S))
    )


def section(content: str, name: str) -> str:
    return re.search(rf'<section id="{name}".*?</section>', content, re.DOTALL)[0]


def test_tables_say_what_the_comparison_says(comparison):
    content = page(comparison, *gallery(comparison.arms))
    scores = text_of(section(content, "scores"))
    assert "flamingo 0.888 ★ [0.838, 0.938] ± 0.012" in scores
    assert "clipcap 0.777 ○ [0.727, 0.827]" in scores and "blind 0.111 [0.061, 0.161]" in scores
    assert "clipcap +0.666 hint [0.466, 0.866] n = 2, p < .001 pictures [0.566, 0.766]" in scores
    assert "clipcap flamingo -0.111 2 [-0.311, 0.089] .250 open [-0.211, -0.011] .250" in scores
    assert (
        "The best mean CIDEr-D is flamingo's, 0.888. Unplanned comparisons: flamingo minus blind +0.777 (n = 2, 95 % "
        "[0.577, 0.977] over seeds, p < .001): hint; flamingo minus clipcap +0.111 (n = 2, 95 % [-0.089, 0.311] over "
        "seeds, p = .250): open."
    ) in text_of(content)
    assert "Planned contrasts" not in content
    assert "Mind &lt;the&gt; gap." in content and "0123456789+" in content and "12 pictures" in content


def test_costs_are_means_over_seeds_and_gaps_are_gaps(comparison):
    blind, clipcap, _ = comparison.arms
    assert cost_of(clipcap)["step_ms"] == 105.0 and cost_of(clipcap)["trainable"] == 7000
    assert cost_of(blind)["peak_memory_mb"] is None
    costs = text_of(section(page(comparison, *gallery(comparison.arms)), "cost"))
    assert "blind 5000 2.81 M 23.5 G 100.0 300.0 50.0 - " in costs


def test_planned_contrasts_come_first_with_all_that_stands_behind_their_word(comparison):
    first, second, third = comparison.differences
    seeds = replace(first.seeds, n=5)
    planned = (
        replace(first, seeds=seeds, verdict=Verdict(5, True, 0.0004, 0.0008, 0.9)),
        second,
        replace(third, seeds=replace(third.seeds, n=5, p=0.3), verdict=Verdict(5, True, 0.3, 0.3, 0.012)),
    )
    plan = Plan((("clipcap", "blind"), ("clipcap", "flamingo")), "CIDEr-D", 0.05)
    content = page(replace(comparison, differences=planned, plan=plan), *gallery(comparison.arms))
    scores = text_of(section(content, "scores"))
    assert "Planned contrasts of CIDEr-D" in scores and "level: within ± 0.05" in scores
    row = "clipcap blind +0.666 5 [0.466, 0.866] < .001 < .001 .900 shown 0.200 0.300 [0.566, 0.766]"
    assert row in scores
    assert "clipcap flamingo -0.111 5 [-0.311, 0.089] .300 .300 .012 level" in scores
    assert (
        "CIDEr-D: clipcap minus blind +0.666 (n = 5, 95 % [0.466, 0.866] over seeds, p < .001, Holm, p = .900 for "
        "level): shown; clipcap minus flamingo -0.111"
    ) in text_of(content)


def test_leaders_and_what_is_open(comparison):
    assert leaders(comparison, "CIDEr-D") == ("flamingo", ["clipcap"])
    loss = replace(comparison, cells={(a, "loss"): c for (a, _), c in comparison.cells.items()}, differences=())
    assert leaders(loss, "loss") == ("blind", [])  # less is better, and nothing was tested
    assert leaders(loss, "length") == (None, [])
    one = SeedTest(1, 1, 0.777)
    alone = tuple(replace(d, seeds=one, verdict=unplanned(one)) for d in comparison.differences)
    assert leaders(replace(comparison, differences=alone), "CIDEr-D") == ("flamingo", ["blind", "clipcap"])


def test_what_cannot_be_told_gets_no_mark(comparison):
    """A score of 0 in every picture has an interval of no width: it was called within noise of a clear lead."""
    flat = Cell(0.0, None, 0.0, 0.0, (0.0,))
    cells = comparison.cells | {("clipcap", "CIDEr-D"): flat}
    assert leaders(replace(comparison, cells=cells), "CIDEr-D") == ("flamingo", [])


def test_nine_arms_look_different():
    assert len({plots.swatch(arm) for arm in range(9)}) == 9


def test_front_of_the_pareto_plot():
    points = [
        plots.Point(i, str(i), x, Cell(y, None, y, y, (y,)))
        for i, (x, y) in enumerate([(1, 1), (2, 3), (3, 2), (4, 3), (5, 4)])
    ]
    assert [p.index for p in plots.front(points, 1)] == [0, 1, 4]
    assert [p.index for p in plots.front(points, -1)] == [0]


def test_marks_of_the_forest_plot_stand_where_the_numbers_are():
    cells = [Cell(0.5, None, 0.4, 0.6, ()), Cell(1.0, None, 0.9, 1.1, ())]
    points = [plots.Point(i, "ab"[i], 0, cell) for i, cell in enumerate(cells)]
    content = str(plots.forest(points, "score"))
    ends = [
        tuple(map(float, m))
        for m in re.findall(r'<g class="arm-.">.*?<path d="M ([\d.]+) [\d.]+ L ([\d.]+) [\d.]+"', content)
    ]
    middles = [float(m) for m in re.findall(r'<use href="#\w+" x="([\d.]+)" [^>]*fill: var\(--a', content)]
    assert middles == pytest.approx([sum(pair) / 2 for pair in ends], abs=0.1)
    assert (middles[1] - middles[0]) / (ends[0][1] - ends[0][0]) == pytest.approx(0.5 / 0.2, rel=0.01)


def test_labels_at_the_end_of_curves_do_not_cover_each_other():
    series = [plots.Series(i, f"arm{i}", ((0, 1), (10, 0.5 + i / 1000))) for i in range(7)]
    content = str(plots.curves(series, "step", "val/loss"))
    places = sorted(float(y) for y in re.findall(r'<g class="name"><text x="[\d.]+" y="([\d.]+)"', content))
    assert len(places) == 7 and min(b - a for a, b in itertools.pairwise(places)) >= plots.LINE - 0.11


def test_plots_name_what_the_mouse_is_on_and_take_the_colours_of_the_page():
    """Names as they were written: no formula, no markup, nothing that XML cannot hold."""
    label = "lr=$1e-3$ \x0b<b>"
    points = [
        plots.Point(i, f"{label}{i}", 2.0**i, Cell(0.5 + i, None, 0.4 + i, 0.6 + i, (0.5 + i,))) for i in range(9)
    ]
    series = [plots.Series(point.index, point.label, ((0, 1.0), (20_000, 2.0))) for point in points]
    for plot in (plots.forest(points, "$a$"), plots.pareto(points, "cost", "$a$", 1), plots.curves(series, "x", "$a$")):
        root = ElementTree.fromstring(plot)
        tips = {
            group.get("class"): group.findtext("title") for group in root.iter("g") if group.find("title") is not None
        }
        assert len(tips) == 9 and all(tip.startswith("lr=$1e-3$  <b>") for tip in tips.values())
        assert "lr=$1e-3$  <b>0" in "".join(text.text for text in root.iter("text")) and "$a$" in root.get("aria-label")
        assert {found for found in re.findall(r"(?:fill|stroke): ([^;\"]*)", plot)} <= {
            "none", *(f"var(--{name})" for name in plots.VARIABLES.values())
        }  # fmt: skip


def test_ids_of_plots_do_not_meet_on_the_page(comparison):
    ids = re.findall(r'\bid="([^"]*)"', page(comparison, *gallery(comparison.arms)))
    assert len(ids) == len(set(ids)) > 9


def test_long_curves_are_thinned_and_short_ones_are_not():
    assert plots._thinned([(0, 1.0), (1, 3.0)]) == ((0, 1.0), (1, 3.0))
    thinned = plots._thinned([(step, 2.0) for step in range(10_001)])
    assert len(thinned) <= plots.POINTS and {y for _, y in thinned} == {2.0} and thinned[-1][0] > 9_900


def test_data_efficiency_appears_where_fractions_were_swept(tmp_path):
    for fusion in ("clipcap", "flamingo"):
        for share in (0.1, 1.0):
            rows = scene_rows(12, 1 - share, 3)
            write_run(tmp_path / "runs" / f"{fusion}{share}", fusion, rows, train_fraction=share)
    content = page(compare(arms := arms_of(tmp_path / "runs"), resamples=200), *gallery(arms))
    plot = re.search(r'<svg[^>]*aria-label="truth over share of the training data".*?</svg>', content)[0]
    assert re.findall(r'<g class="name"><text[^>]*>([^<]*)<', plot) == ["clipcap", "flamingo"]


def test_no_data_efficiency_without_a_sweep_and_one_arm_alone_is_a_report(tmp_path):
    write_run(tmp_path / "runs" / "a", "clipcap", scene_rows(12, 0.5, 1))
    content = build(tmp_path / "runs", tmp_path / "out").read_text(encoding="utf-8")
    assert "clipcap on scenes, split test" in content and "share of the training data" not in content
    assert "Differences from" not in content and "is ahead" not in content and data_of(content)["arms"] == ["clipcap"]


def test_nothing_comes_from_outside(comparison):
    content = page(comparison, *gallery(comparison.arms))
    assert "default-src 'none'" in content and not re.search(r'(src|href)="(?!#|data:)', content)
    assert "http://" not in content and "https://" not in content and "url(" not in content and "@import" not in content


def test_captions_cannot_break_out_of_the_data():
    data = {"captions": [EVIL, ARABIC, EMOJI, "<!--", "]]>", "\ud800"]}
    text = str(embedded(data))
    assert json.loads(text) == data and text.isascii() and not set("<>&\n") & set(text)


def test_file_size_is_stated_and_small(tmp_path):
    write_run(tmp_path / "runs" / "a", "clipcap", scene_rows(200, 0.5, 1))
    path = build(tmp_path / "runs", tmp_path / "out")
    size = path.stat().st_size
    assert f"{size / 1e6:.1f} MB" in path.read_text(encoding="utf-8") and size < 200 * 10_000


# --------------------------------------------------------------------------------------------------------------------
# the verb
# --------------------------------------------------------------------------------------------------------------------
def report(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "src.report", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_verb_writes_a_page_and_three_tables(runs, tmp_path):
    answer = report(tmp_path, "runs=runs", "resamples=200", "gallery=4")
    assert answer.returncode == 0, answer.stderr
    (folder,) = (tmp_path / "runs" / "report").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["index.html", "table.csv", "table.md", "table.tex"]
    assert f"written: {folder.relative_to(tmp_path)}/index.html (" in answer.stdout and "4 pictures" in answer.stdout
    again = report(tmp_path, "runs=runs", "resamples=200", "pictures=false", f"output={folder}")
    assert again.returncode == 0 and "replaced: the earlier report" in again.stdout
    assert data_of((folder / "index.html").read_text(encoding="utf-8"))["pictures"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "runs= is missing"),
        (["runs=nowhere"], "names no folder of a finished run"),
        (["runs=runs", "baseline=nobody"], "baseline=nobody"),
    ],
)
def test_mistakes_are_one_sentence(runs, tmp_path, arguments, message):
    answer = report(tmp_path, *arguments)
    assert answer.returncode == 2 and answer.stdout == ""
    assert answer.stderr.startswith("error: ") and message in answer.stderr and answer.stderr.count("\n") == 1


def test_starts_without_torch():
    code = "import sys, src.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


# --------------------------------------------------------------------------------------------------------------------
# the page in a browser
# --------------------------------------------------------------------------------------------------------------------
def browse(path: Path, fragment: str = "") -> str:
    """The document after the script has run, as chromium sees it. Fails on anything that reaches the console."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    command += [f"--user-data-dir={path.parent / 'profile'}", f"file://{path}{fragment and '#' + fragment}"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120)
    complaints = [line for line in answer.stderr.splitlines() if "CONSOLE" in line]
    assert answer.returncode == 0 and not complaints, complaints
    return answer.stdout


def shown(document: str) -> list[str]:
    return re.findall(r'<li class="card" data-id="([^"]*)"', document)


@browser
def test_page_opens_and_shows_every_caption(runs, tmp_path):
    path = build(runs, tmp_path / "out")
    document = browse(path)
    data = data_of(path.read_text(encoding="utf-8"))
    assert shown(document) == data["ids"] and "12 pictures" in text_of(document)
    cards = text_of(re.search(r'<ol class="cards".*?</ol>', document, re.DOTALL)[0])
    assert all(caption in re.sub(r" ([,.])", r"\1", cards) for captions in data["captions"] for caption in captions)
    assert document.count('<img class="picture"') == 12
    for name in ("t", "f"):  # one <mark> per marked word, beside the three of the legend
        wanted = sum(run[1::2].count("tf".index(name) + 1) for of_arm in data["marks"] for run in of_arm)
        assert document.count(f'<mark class="{name}"') == wanted + 1


@browser
def test_marks_fit_into_the_table_and_bars_stand_in_line(comparison, tmp_path):
    """The last column's star was cut off, and bars shifted where the number beside them was bold."""
    probe = """<script>
        const wide = document.querySelector("#scores .wide"), mark = document.querySelector("td.best .mark");
        const left = (element) => element.getBoundingClientRect().left;
        document.title = JSON.stringify({
            over: wide.scrollWidth - wide.clientWidth,
            spare: wide.getBoundingClientRect().right - mark.getBoundingClientRect().right,
            lefts: [...new Set([...document.querySelectorAll(".card .bar")].map(left))],
            bold: document.querySelectorAll(".card tr.top .bar").length,
        });
    </script>"""
    content = page(comparison, *gallery(comparison.arms))
    open_to_all = re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', "", content)
    (tmp_path / "page.html").write_text(open_to_all.replace("</body>", f"{probe}</body>"), encoding="utf-8")
    document = browse(tmp_path / "page.html")
    found = json.loads(html.unescape(re.search("<title>(.*?)</title>", document)[1]))
    assert found["over"] == 0 and found["spare"] >= 0 and len(found["lefts"]) == 1 and found["bold"] > 0


@browser
def test_orders(runs, tmp_path):
    path = build(runs, tmp_path / "out")
    data = data_of(path.read_text(encoding="utf-8"))
    scores = data["scores"][data["metrics"].index("CIDEr-D")]
    captions = data["captions"]

    def order(key) -> list[str]:
        return [data["ids"][i] for i in sorted(range(12), key=key)]

    def differing(i: int) -> int:
        said = [of_arm[i] for of_arm in captions]
        return sum(said[a] != said[b] for a in range(3) for b in range(a))

    def spread(i: int) -> float:
        return max(s[i] for s in scores) - min(s[i] for s in scores)

    expected = {
        "sort=disagreement": lambda i: -spread(i),
        "sort=captions": lambda i: (-differing(i), -spread(i)),
        "sort=best&a=flamingo": lambda i: -scores[2][i],
        "sort=worst&a=clipcap": lambda i: scores[1][i],
        "sort=ahead&a=flamingo&b=blind": lambda i: scores[0][i] - scores[2][i],
        "sort=behind&a=flamingo&b=blind": lambda i: scores[2][i] - scores[0][i],
        "sort=disagreement&hide=blind": lambda i: -abs(scores[1][i] - scores[2][i]),
    }
    for fragment, key in expected.items():
        assert shown(browse(path, f"metric=CIDEr-D&{fragment}")) == order(key), fragment


@browser
def test_filter_pages_and_toggles(runs, tmp_path):
    path = build(runs, tmp_path / "out")
    data = data_of(path.read_text(encoding="utf-8"))
    texts = ["\n".join([*refs, *said]).lower() for refs, *said in zip(data["refs"], *data["captions"], strict=True)]
    wanted = [id for id, text in zip(data["ids"], texts, strict=True) if "red" in text and "circle" in text]
    assert 0 < len(wanted) < 12
    document = browse(path, "filter=Circle%20RED")
    assert shown(document) == wanted and f"{len(wanted)} of 12 pictures" in text_of(document)
    assert shown(browse(path, "size=10&page=2")) == data["ids"][10:]
    assert shown(browse(path, "size=10&page=99")) == data["ids"][10:] and not shown(browse(path, "filter=zebra"))
    document = browse(path, "hide=clipcap&hide=nobody&metric=nothing&sort=nothing&a=nobody")
    names = set(re.findall(r'<th scope="row" title="([^"]*)"', document))
    assert names == {"blind", "flamingo"} and shown(document) == data["ids"]


@browser
def test_switches_of_the_plots(runs, tmp_path):
    path = build(runs, tmp_path / "out")

    def visible(fragment: str) -> list[str]:
        return re.findall(r'<div data-score="([^"]*)"(?: data-cost="[^"]*")?>', browse(path, fragment))

    assert visible("") == ["truth", "truth"] and visible("score=CIDEr-D") == ["CIDEr-D", "CIDEr-D"]
    document = browse(path, "score=CIDEr-D&cost=step_ms")
    assert re.findall(r'<div data-score="([^"]*)" data-cost="([^"]*)">', document) == [("CIDEr-D", "step_ms")]


@browser
def test_tables_are_sorted_by_a_click_on_a_column(runs, tmp_path):
    path = build(runs, tmp_path / "out")
    page_text = path.read_text(encoding="utf-8")
    column = data_of(page_text)["first"]
    means = {arm.label: sum(row[column] for run in arm.runs for row in run.rows) for arm in arms_of(runs)}
    down = sorted(means, key=lambda label: -means[label])
    for clicks, wanted in ((0, list(means)), (1, down), (2, down[::-1])):
        document = clicked(path, f"#scores thead th:nth-child({2 + scores_of(page_text).index(column)}) button", clicks)
        rows = re.search(r"<tbody>(.*?)</tbody>", document, re.DOTALL)[1]
        assert re.findall(r'<span class="label">(.*?)</span>', rows) == wanted
    assert 'aria-sort="ascending"' in document


def scores_of(text: str) -> list[str]:
    """The scores in the order of the first table's columns."""
    return re.findall(r"<option[^>]*>([^<]*)</option>", re.search(r'<select name="score">(.*?)</select>', text)[1])


def clicked(path: Path, selector: str, times: int = 1) -> str:
    """The document after clicks on what ``selector`` names, made by a script of this test's."""
    script = f"for (let i = 0; i < {times}; i++) document.querySelector({json.dumps(selector)}).click();"
    text = path.read_text(encoding="utf-8").replace("</body>", f"<script>{script}</script></body>")
    clicks = path.with_name("clicked.html")
    clicks.write_text(re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text), encoding="utf-8")
    return browse(clicks)


@browser
def test_a_click_on_a_picture_shows_it_larger(runs, tmp_path):
    path = build(runs, tmp_path / "out")
    dialog = r'<dialog class="larger"[^>]*?( open="")?>(.*?)</dialog>'
    before = re.search(dialog, browse(path), re.DOTALL)
    after = re.search(dialog, clicked(path, ".card:nth-child(2) .enlarge"), re.DOTALL)
    pictures = data_of(path.read_text(encoding="utf-8"))["pictures"]
    assert before[2] == "" and after[1] and pictures[1] in after[2]


@browser
def test_a_page_without_pictures_has_no_dead_controls(runs, tmp_path):
    document = browse(build(runs, tmp_path / "out", limit=0))
    assert "None of the 12 pictures is on this page (gallery=0)." in document
    assert 'data-controls="gallery"' not in document and "pager" not in document.partition("<body>")[2]


@browser
def test_captions_while_validating_are_curves(runs, tmp_path):
    for log in runs.glob("*/log/metrics.csv"):
        lines = log.read_text().splitlines()
        more = [f"{line},{number / 10},{number / 20}" for number, line in enumerate(lines[1:])]
        log.write_text("\n".join([f"{lines[0]},val/CIDEr-D,val/BLEU-4", *more]) + "\n")
    path = build(runs, tmp_path / "out")
    for fragment, wanted in (("", "CIDEr-D"), ("online=BLEU-4", "BLEU-4"), ("online=nothing", "CIDEr-D")):
        document = browse(path, fragment)
        assert re.findall(r'<div data-online="([^"]*)">', document) == [wanted]
        assert f'aria-label="val/{wanted} over step"' in document


@browser
def test_nothing_that_people_wrote_becomes_markup(tmp_path):
    texts = [EVIL, ARABIC, EMOJI, "", "{{ 7 * 7 }}", "a\rb\fc"]
    source = {"_target_": "src.data.folder.Folder", "root": str(tmp_path / "nowhere<b>")}
    for fusion in ("clipcap", "flamingo"):
        rows = [
            {"id": f"{number}{EVIL}", "caption": text, "references": [text or "x"], "CIDEr-D": number + len(fusion)}
            for number, text in enumerate(texts)
        ]
        write_run(tmp_path / "runs" / fusion, fusion, rows, source=source)
    command = tmp_path / "runs" / "clipcap" / "environment.json"
    command.write_text(json.dumps({"command": EVIL, "commit": EVIL, "choices": {"data": EVIL, "fusion": EVIL}}))
    path = build(tmp_path / "runs", tmp_path / "out")
    document = browse(path, "filter=" + quote("<script>"))
    assert (
        "<title>broken" not in document and "<img src" not in document and "7 * 7" in path.read_text(encoding="utf-8")
    )
    assert len(re.findall(r"<script", document)) == 2
    assert len(shown(document)) == 6  # every id has it
    document = browse(path)
    cells = re.findall(r'<td class="caption-text" dir="auto">(.*?)</td>', document, re.DOTALL)
    assert html.unescape(cells[0]) == EVIL and html.unescape(cells[2]) == ARABIC and html.unescape(cells[4]) == EMOJI
    assert "no picture" in document and "(empty)" in document


@browser
def test_a_thousand_pictures_and_seven_arms(tmp_path, capsys):
    fusions = ["blind", "clipcap", "coca", "cross_attention", "flamingo", "srau", "vcgpt"]
    for number, fusion in enumerate(fusions):
        write_run(tmp_path / "runs" / fusion, fusion, scene_rows(1000, number / 7, number))
    arms = arms_of(tmp_path / "runs")
    path = tmp_path / "index.html"
    path.write_text(page(compare(arms, resamples=200), *gallery(arms)), encoding="utf-8")
    times = {}
    for fragment in ("", "metric=CIDEr-D&sort=disagreement", "sort=captions", "filter=red+ring", "size=100&sort=worst"):
        document = browse(path, fragment)
        times[fragment or "opened"] = float(re.search(r'data-ms="([\d.]+)"', document)[1])
        assert len(shown(document)) == (100 if "size" in fragment else 20)
    with capsys.disabled():
        print(f"\n1000 x 7: {path.stat().st_size / 1e6:.1f} MB; ms to sort and draw: {times}")
    assert path.stat().st_size < 10e6 and max(times.values()) < 5000
