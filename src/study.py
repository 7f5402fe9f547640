"""Run a study by its registered plan: prediction, tuning, finals seed by seed, contrasts; it goes on where it stopped.

python -m src.study plan=conf/study/smoke.yaml
python -m src.study plan=conf/study/scenes.yaml jobs=2
python -m src.study plan=conf/study/scenes.yaml do=conclude      tables and figures again, from what is kept
"""

from __future__ import annotations

import time
from pathlib import Path

import hydra
from omegaconf import DictConfig

from src.config.command_line import verb
from src.errors import UserError
from src.studies.plan import read_plan


@hydra.main(version_base="1.3", config_path=str(Path(__file__).resolve().parents[1] / "conf"), config_name="study")
@verb
def main(cfg: DictConfig) -> None:
    """Plan -> prediction -> trainings -> what is kept of them -> conclusions."""
    plan = read_plan(str(cfg.plan))
    from filelock import FileLock, Timeout

    from src.launch.pool import interruptible, leases
    from src.studies.conclude import conclude
    from src.studies.ledger import Ledger
    from src.studies.mirror import mirror
    from src.studies.predict import predict, told, too_much
    from src.studies.probe import measure
    from src.studies.work import Work

    ledger = Ledger(Path(str(cfg.output)) / plan.name, plan)
    places = leases(None if cfg.devices is None else [str(device) for device in cfg.devices], cfg.jobs)
    work = Work(plan, ledger, Path(str(cfg.runs)) / plan.name, places)
    command = f"python -m src.study plan={cfg.plan}"
    if cfg.do == "conclude" or work.done:  # nothing is left to measure or to train
        conclude(ledger, command)
        print(f"written: {ledger.folder}")
        mirror(ledger, work.folder)
        return
    work.folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work.folder / "lock", timeout=0), interruptible():
            work.prepare()
            measured = measure({arm.label: work.schedule(arm, max(arm.lengths)) for arm in plan.arms()}, places)
            measured = work.calibrated(measured)
            prediction = predict(work, measured)
            print(told(prediction, measured), flush=True)
            if sentence := too_much(work, prediction, measured):
                raise UserError(sentence)
            if cfg.do == "predict":
                return
            started = time.monotonic()
            work.rows()
            work.tune()
            work.finals(lambda: conclude(ledger, command))
            took = (time.monotonic() - started) / 3600
            said = f"Predicted for what was missing: {60 * prediction.hours:.1f} minutes; it took {60 * took:.1f}."
            conclude(ledger, command, said)
            mirror(ledger, work.folder)
    except Timeout:
        raise UserError(f"Another process works on {work.folder}; wait for it, or stop it.") from None
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where it stopped.", flush=True)
        raise SystemExit(130) from None
    print(said)
    print(f"written: {ledger.folder}/README.md, tables, figures; runs of {len(plan.seeds)} seeds")


if __name__ == "__main__":
    main()
