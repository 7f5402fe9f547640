"""The W&B workspace, built without network or login."""

from __future__ import annotations

import json
import re

import pytest
from commands import run
from test_study_in_wandb import of_job
from test_study_in_wandb import study as study  # fixtures, as the next ones
from test_study_in_wandb import told as told
from test_tracking import alone as alone

from src import dashboard
from src.errors import UserError
from src.studies.concluded import read

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
    assert dashboard.save("fusions", None) == ["https://wandb.example/me/fusions?nw=abc"]
    assert saved[0].entity == "me" and saved[0].display_name == dashboard.NAME
    dashboard.save("fusions", "team")
    assert saved[1].entity == "team"


def test_a_refusal_is_one_sentence(monkeypatch):
    def refuse():
        raise ValueError("no such entity\nand more")

    monkeypatch.setattr("wandb.Api", refuse)
    with pytest.raises(UserError, match=r"\(no such entity\)"):
        dashboard.save("fusions", None)


# --------------------------------------------------------------------------------------------------------------------
# of one study
# --------------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def views(study) -> list[dict]:
    return [dashboard.plain(view) for view in dashboard.views("fusions", "me", read(study.folder))]


def grids(report: dict) -> list[dict]:
    return [block["metadata"] for block in report["spec"]["blocks"] if block["type"] == "panel-grid"]


def without_names(found: list) -> list:
    """Panels without what W&B makes up anew for each."""
    return [
        {"viewType": one["viewType"], "config": re.sub(r'"id": "\w+"', "", json.dumps(one["config"]))} for one in found
    ]


def test_both_look_at_the_group_of_the_study_without_its_trials(views):
    workspace, report = views
    asked = [workspace["spec"]["section"]["runSets"][0], *(grid["runSets"][0] for grid in grids(report))]
    for one in asked:
        group, job = one["filters"]["filters"]
        assert (group["key"]["name"], group["op"], group["value"]) == ("group", "=", "looks")
        assert (job["key"]["name"], job["op"], job["value"]) == ("jobType", "IN", ["study", "arm", "train"])
    assert workspace["displayName"] == report["displayName"] == "Study: looks"
    assert workspace["entity"] == report["project"]["entityName"] == "me"


def test_panels_of_a_study_show_arms_with_bands_over_seeds_of_what_is_logged(views, told):
    found = [panel for section in panels(views[0]).values() for panel in section]
    configs = [panel["config"] for panel in found if panel["viewType"] in ("Bar Chart", "Run History Line Plot")]
    assert all(config["groupAgg"] == "mean" and config["groupArea"] in ("stddev", "minmax") for config in configs)
    curves = {(config.get("xAxis"), config["metrics"][0]): config["groupBy"] for config in configs}
    for score in ("gain/loss", "gap/loss", "loss", "CIDEr-D"):
        for x in (None, "final/flop", "final/seconds"):
            assert curves[x, f"final/{score}"] == "labels.value.arm"
    assert curves["trainer/global_step", "val/loss"] == curves[None, "cost/step_ms"] == "labels.value.training"
    logged = {name for one in of_job(told, "arm") for row in one.history for name in row}
    assert {name for pair in curves for name in pair if name and name.startswith("final/")} <= logged
    (whole,) = of_job(told, "study")
    shown = json.dumps(found)
    for table in ("contrasts", "arms", "finals"):
        assert f'"{table}"' in shown and f"{table}._type" in whole.summary
    assert '"figures/curves"' in shown and "figures/curves._type" in whole.summary


def test_the_report_has_question_contrasts_and_the_panels_of_the_workspace(views, study):
    workspace, report = views
    blocks = report["spec"]["blocks"]
    words = [block.get("content") or block["children"][0]["text"] for block in blocks]
    assert report["description"] == "Does it look?" and "Does it look?" in words[1]
    assert "Planned contrasts, 8 steps" in words and "Deviations from the plan" in words
    text = "\n".join(words)
    assert "gain/loss, tuned/srau minus tuned/blind: +" in text and "| tuned/srau minus tuned/blind | +" in text
    assert "](" not in text  # what lies beside the README is not there
    of_report = [panel for grid in grids(report) for panel in grid["panelBankSectionConfig"]["panels"]]
    of_workspace = [panel for section in panels(workspace).values() for panel in section]
    assert without_names(of_report) == without_names(of_workspace)


def test_of_a_study_both_are_written_without_a_login(alone, study, tmp_path):
    answer = run(
        "src.dashboard", "project=fusions", f"concluded='{study.folder}'", f"output='{tmp_path}/workspace.json'"
    )
    assert answer.stdout.count("wandb login") == 2
    assert json.loads((tmp_path / "workspace.json").read_text())["displayName"] == "Study: looks"
    assert json.loads((tmp_path / "workspace-report.json").read_text())["displayName"] == "Study: looks"


def test_a_folder_of_no_study_is_one_sentence(alone, tmp_path):
    answer = run("src.dashboard", "project=fusions", f"concluded='{tmp_path}/none'", ok=False)
    assert "none holds no concluded study; run it" in answer.stderr and "Traceback" not in answer.stderr


def test_saving_a_study_gives_both_links(study, monkeypatch):
    class View:
        def __init__(self, url):
            self.url = url

        def save(self):
            return self

    monkeypatch.setattr("src.studies.views.workspace", lambda project, entity, study: View(f"{entity}/{project}/w"))
    monkeypatch.setattr("src.studies.views.report", lambda project, entity, study: View(f"{entity}/{project}/r"))
    assert dashboard.save("fusions", "team", read(study.folder)) == ["team/fusions/w", "team/fusions/r"]
