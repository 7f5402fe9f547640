"""The W&B workspace and the W&B report of one study: panels over what ``mirror`` and the trainings log.

Both look at the runs of the study's group, without the trials of its tuning.
"""

from __future__ import annotations

from src.comparison.numbers import PLANNED, planned
from src.records.wandb_runs import group_of
from src.studies.concluded import SCORES, Concluded
from src.studies.mirror import PREFIX

JOBS = ["study", "arm", "train"]
RUNS = 1000  # that a panel reads: all arms, seeds and lengths
ARM, TRAINING = "labels.arm", "labels.training"  # in a run's configuration; the latter: arm and steps
SPENT = {"flop": "training FLOP", "seconds": "seconds of training"}
COSTS = {
    "cost/step_ms": "milliseconds a step",
    "cost/training_flops": "floating-point operations a batch",
    "cost/parameters/trainable": "trainable parameters",
    "cost/train_seconds": "seconds of training",
}


def workspace(project: str, entity: str, study: Concluded):
    """Built without network. ``entity``: "" where it is not known."""
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"Study: {study.plan.name}",
        sections=[ws.Section(name=name, panels=panels, is_open=True) for name, panels in sections().items()],
        settings=ws.WorkspaceSettings(x_axis="trainer/global_step", max_runs=RUNS),
        runset_settings=ws.RunsetSettings(
            filters=_filters(study), pinned_columns=[f"summary:{PREFIX}{score}" for score in SCORES]
        ),
    )


def report(project: str, entity: str, study: Concluded):
    """The study's words, its contrasts as a table, the workspace's panels, then the rest of its README."""
    import wandb_workspaces.reports.v2 as wr

    above, *parts = study.sections.items()
    blocks = [wr.MarkdownBlock(text=above[1])]
    for place, (heading, body) in enumerate(parts):
        blocks += [wr.H2(text=heading), wr.MarkdownBlock(text=body)]
        if place == 0:  # the planned contrasts
            blocks += [wr.MarkdownBlock(text=_contrasts(study))] if study.contrasts else []
            for name, panels in sections().items():
                runs = wr.Runset(name=study.plan.name, filters=_filters(study))  # of the report's own project
                blocks += [wr.H2(text=name), wr.PanelGrid(runsets=[runs], panels=panels)]
    return wr.Report(
        entity=entity,
        project=project,
        title=f"Study: {study.plan.name}"[:128],
        description=study.plan.question,
        blocks=blocks,
        width="fluid",
    )


def sections() -> dict[str, list]:
    """Panels by the headings above them."""
    return {
        "Contrasts": [_table("contrasts")],
        "Scores at the longest length: mean and standard deviation over seeds": [
            _bar(f"{PREFIX}{score}", score, ARM) for score in SCORES
        ],
        "Scores over computation and time: mean and range over seeds": [
            _curve(f"{PREFIX}{score}", f"{score} over {title}", ARM, x=f"{PREFIX}{what}", title_x=title, log_x=True)
            for score in SCORES
            for what, title in SPENT.items()
        ],
        "Trainings: mean and range over seeds": [
            _curve(name, name, TRAINING, x="trainer/global_step") for name in ("val/loss", "train/loss")
        ],
        "Cost of a training": [_bar(cost, title, TRAINING) for cost, title in COSTS.items()],
        "Tables and figures": [_table("arms"), _table("finals"), *map(_figure, ("curves", "tuning"))],
    }


def _filters(study: Concluded):
    from wandb_workspaces import expr

    return expr.And(expr.Metric("Group") == group_of(study.plan.name), expr.Metric("JobType").isin(JOBS))


def _contrasts(study: Concluded) -> str:
    """The planned ones in Markdown, in the cells of every such table."""
    rows = [("contrast", *PLANNED), ["---"] * (len(PLANNED) + 1)]
    rows += [(f"{d.arm} minus {d.other}", *planned(d)) for d in study.contrasts]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _bar(metric: str, title: str, groupby: str):
    import wandb_workspaces.reports.v2 as wr

    return wr.BarPlot(
        title=title,
        metrics=[metric],
        groupby=wr.Config(groupby),
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
        max_runs_to_show=RUNS,
    )


def _curve(metric: str, title: str, groupby: str, **axis):
    import wandb_workspaces.reports.v2 as wr

    return wr.LinePlot(
        title=title,
        y=[metric],
        groupby=wr.Config(groupby),
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
        max_runs_to_show=RUNS,
        **axis,
    )


def _table(name: str):
    import wandb_workspaces.reports.v2 as wr

    return wr.WeavePanelSummaryTable(table_name=name, layout=wr.Layout(w=24, h=9))


def _figure(name: str):
    import wandb_workspaces.reports.v2 as wr

    return wr.MediaBrowser(title=name, media_keys=[f"figures/{name}"], layout=wr.Layout(w=12, h=9))
