"""The W&B workspace, built without network or login."""

from __future__ import annotations

import json
import re

import pytest
from commands import run
from test_tracking import alone as alone  # the fixture

from src import dashboard
from src.errors import UserError

pytest.importorskip("wandb_workspaces")


def panels(spec: dict) -> dict[str, list[dict]]:
    sections = spec["spec"]["section"]["panelBankConfig"]["sections"]
    return {section["name"].split(":")[0]: section["panels"] for section in sections}


@pytest.fixture(scope="module")
def spec() -> dict:
    return dashboard.plain(dashboard.workspace("fusions", "me"))


def test_five_sections_for_the_comparison(spec):
    assert spec["project"] == "fusions" and spec["entity"] == "me"
    assert list(panels(spec)) == ["Comparison", "Training", "Gates and temperatures", "Cost", "Samples"]
    assert all(panels(spec).values())


def test_scores_are_bars_per_fusion_over_seeds(spec):
    bars = [panel["config"] for panel in panels(spec)["Comparison"]]
    assert {"test/CIDEr-D", "test/truth"} <= {metric for bar in bars for metric in bar["metrics"]}
    for bar in bars:
        assert bar["groupBy"] == "choices.value.fusion" and bar["aggregate"]
        assert bar["groupAgg"] == "mean" and bar["groupArea"] == "stddev"


def test_curves_are_grouped_by_fusion_over_optimiser_steps(spec):
    curves = [panel["config"] for panel in panels(spec)["Training"]]
    grouped = {curve["metrics"][0]: curve["groupBy"] for curve in curves if curve["metrics"]}
    assert grouped["train/loss"] == grouped["val/loss"] == "choices.value.fusion"
    assert {curve["xAxis"] for curve in curves} == {"trainer/global_step"}


@pytest.mark.parametrize(
    ("section", "logged"),
    [
        ("Training", "train/pairs/loss"),
        ("Training", "val/stories/loss"),
        ("Training", "lr-AdamW/fusion/no_decay"),
        ("Gates and temperatures", "fusion/tanh_alpha/0"),
        ("Gates and temperatures", "fusion/tanh_beta/3"),
        ("Gates and temperatures", "fusion/temperature"),
    ],
)
def test_patterns_find_what_is_logged(spec, section, logged):
    patterns = [panel["config"].get("metricRegex") for panel in panels(spec)[section]]
    assert any(re.search(pattern, logged) for pattern in patterns if pattern)


def test_quality_against_cost(spec):
    pairs = {(panel["config"]["xAxis"], panel["config"]["yAxis"]) for panel in panels(spec)["Cost"]}
    costs = ("cost/step_ms", "cost/parameters/trainable", "cost/training_flops")
    assert pairs == {(f"summary:{x}", f"summary:test/{y}") for x in costs for y in ("CIDEr-D", "truth")}


def test_samples_are_tables_and_pictures(spec):
    text = json.dumps(panels(spec)["Samples"])
    assert '"samples"' in text and '"samples_sheet"' in text and '"diagnostics/attention"' in text


def test_without_a_login_it_is_written(alone, tmp_path):
    answer = run("src.dashboard", "project=fusions", f"output='{tmp_path}/workspace.json'")
    assert "wandb login" in answer.stdout
    written = json.loads((tmp_path / "workspace.json").read_text())
    assert written["project"] == "fusions" and len(panels(written)) == 5


def test_a_project_must_be_named(alone):
    answer = run("src.dashboard", ok=False)
    assert "project= is missing" in answer.stderr and "Traceback" not in answer.stderr


def test_saving_takes_the_default_entity_and_gives_the_link(monkeypatch):
    from wandb_workspaces.workspaces import interface

    saved = []

    class Api:
        default_entity = "me"

    def upsert(view):
        saved.append(view)
        return {"upsertView": {"view": {"name": "nw-abc-v", "id": "1"}}}

    monkeypatch.setattr("wandb.Api", Api)
    monkeypatch.setattr(interface.internal, "upsert_view2", upsert)
    monkeypatch.setattr(interface, "get_app_url", lambda api: "https://wandb.example")
    assert dashboard.save("fusions", None) == "https://wandb.example/me/fusions?nw=abc"
    assert saved[0].entity == "me" and saved[0].display_name == dashboard.NAME
    dashboard.save("fusions", "team")
    assert saved[1].entity == "team"


def test_a_refusal_is_one_sentence(monkeypatch):
    def refuse():
        raise ValueError("no such entity\nand more")

    monkeypatch.setattr("wandb.Api", refuse)
    with pytest.raises(UserError, match=r"\(no such entity\)"):
        dashboard.save("fusions", None)
