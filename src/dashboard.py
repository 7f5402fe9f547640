"""The W&B workspace that compares the runs of a project, as code: scores, curves, gates, cost, captions.

python -m src.dashboard project=vision-language-fusion
python -m src.dashboard project=... entity=my-team
python -m src.dashboard project=... concluded=experiments/scenes    one study: its workspace, a report of what it shows

Its panels read what ``logger=wandb`` logs. Needs a login; without one what it would make is written as JSON.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from src.config.command_line import verb
from src.errors import UserError
from src.records.files import write_json
from src.records.wandb_runs import logged_in
from src.studies.concluded import Concluded, read

NAME = "Fusion mechanisms compared"
FUSION = "choices.fusion"  # in a run's configuration: the word after fusion=
SCORES = (
    "loss",
    "gap/loss",
    "CIDEr-D",
    "truth",
    "truth_f1",
    "coverage",
    "ROUGE-L",
    "unique",
    "gap/truth",
    "gap/CIDEr-D",
)
CURVES = ("train/loss", "val/loss", "train/gradient_norm")
COSTS = {
    "cost/step_ms": "milliseconds a step",
    "cost/parameters/trainable": "trainable parameters",
    "cost/training_flops": "floating-point operations a batch",
}
DIAGNOSTICS = ("attention", "occlusion", "visual_gate", "language_gate", "logit_share", "tanh_gates", "prefix_words")
RUNS = 100  # that a panel reads; five mechanisms with a few seeds each are more than W&B's ten


@hydra.main(version_base="1.3", config_path=str(Path(__file__).resolve().parents[1] / "conf"), config_name="dashboard")
@verb
def main(cfg: DictConfig) -> None:
    """Save what is shown and print the links; without a login write it to ``output`` and beside it."""
    if OmegaConf.is_missing(cfg, "project"):
        raise UserError("project= is missing; give the W&B project that the runs are in (logger.project of training).")
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise UserError("The dashboard needs a package: pip install wandb-workspaces.")
    study = None if cfg.concluded is None else read(Path(str(cfg.concluded)))
    if logged_in():
        for link in save(str(cfg.project), cfg.entity, study):
            print(f"dashboard: {link}")
        return
    output = Path(str(cfg.output))
    paths = [output, output.with_name(f"{output.stem}-report.json")]
    for path, view in zip(paths, views(str(cfg.project), str(cfg.entity or ""), study), strict=False):
        write_json(path, plain(view))
        print(f"written: {path}; to have it on W&B, log in with `wandb login` and give this command again.")


def views(project: str, entity: str, study: Concluded | None) -> list:
    """The workspace of a project; of one study its workspace and its report."""
    if study is None:
        return [workspace(project, entity)]
    from src.studies import views as of_study

    return [of_study.workspace(project, entity, study), of_study.report(project, entity, study)]


def save(project: str, entity: str | None, study: Concluded | None = None) -> list[str]:
    """New views of the project, beside those that are there; returns their links. Raises UserError."""
    import wandb

    try:
        entity = entity or wandb.Api().default_entity
        return [view.save().url for view in views(project, entity, study)]
    except Exception as error:  # wandb has several kinds of its own for one refused request
        cause = str(error).splitlines()[0]
        raise UserError(f"W&B has not taken the dashboard ({cause}); is {project} a project of yours?") from error


def plain(view) -> dict:
    """A workspace or report as W&B stores it."""
    return view._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)


def workspace(project: str, entity: str):
    """The workspace, built without network. ``entity``: "" where it is not known."""
    import wandb_workspaces.workspaces as ws

    sections = {
        "Comparison: test scores, mean and standard deviation over seeds": scores(),
        "Training: curves, mean and range over seeds": curves(),
        "Gates and temperatures": gates(),
        "Cost: quality against time, size and operations": costs(),
        "Samples": samples(),
    }
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[ws.Section(name=name, panels=panels, is_open=True) for name, panels in sections.items()],
        settings=ws.WorkspaceSettings(x_axis="trainer/global_step", max_runs=RUNS),
        runset_settings=ws.RunsetSettings(
            pinned_columns=["summary:test/CIDEr-D", "summary:test/truth", "summary:cost/step_ms"]
        ),
    )


def scores() -> list:
    """A bar per mechanism and score."""
    import wandb_workspaces.reports.v2 as wr

    return [
        wr.BarPlot(
            title=f"test {score}",
            metrics=[f"test/{score}"],
            groupby=wr.Config(FUSION),
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
            max_runs_to_show=RUNS,
        )
        for score in SCORES
    ]


def curves() -> list:
    """Losses and gradient norm by mechanism; then every data set of a mixture, every score of validation and rate."""
    import wandb_workspaces.reports.v2 as wr

    named = [_curve(title=name, y=[name], groupby=wr.Config(FUSION)) for name in CURVES]
    families = {
        "losses per data set": "^(train|val)/.+/loss$",
        "validation scores": "^val/(CIDEr-D|BLEU-4|ROUGE-L)$",
        "learning rates": "^lr-",
    }
    return named + [_curve(title=title, metric_regex=regex) for title, regex in families.items()]


def gates() -> list:
    """What mechanisms say of themselves, as the steps go by."""
    families = {
        "tanh gates, attention": "^fusion/tanh_alpha/",
        "tanh gates, feed-forward": "^fusion/tanh_beta/",
        "temperatures": "^fusion/.*temperature",
        "everything that mechanisms log": "^fusion/",
    }
    return [_curve(title=title, metric_regex=regex) for title, regex in families.items()]


def _curve(**options):
    import wandb_workspaces.reports.v2 as wr

    if "groupby" in options:
        options |= {"groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    return wr.LinePlot(x="trainer/global_step", max_runs_to_show=RUNS, **options)


def costs() -> list:
    """A point per run: two measures of quality against three of cost."""
    import wandb_workspaces.reports.v2 as wr

    return [
        wr.ScatterPlot(
            title=f"{quality} against {title}",
            x=wr.SummaryMetric(cost),
            y=wr.SummaryMetric(f"test/{quality}"),
            log_x=True,
        )
        for quality in ("CIDEr-D", "truth")
        for cost, title in COSTS.items()
    ]


def samples() -> list:
    """The tables of captions with pictures and scores, the sheets, and the figures of what was looked at."""
    import wandb_workspaces.reports.v2 as wr

    return [
        wr.WeavePanelSummaryTable(table_name="samples"),
        wr.MediaBrowser(title="captions", media_keys=["samples_sheet"], num_columns=2),
        *(wr.MediaBrowser(title=kind.replace("_", " "), media_keys=[f"diagnostics/{kind}"]) for kind in DIAGNOSTICS),
    ]


if __name__ == "__main__":
    main()
