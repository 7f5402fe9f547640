"""The meter of a training: steps, what is waited between them, and the same after a break."""

from __future__ import annotations

import time
from types import SimpleNamespace

from src.training.cost import WARMUP_STEPS, CostMeter


def steps(meter: CostMeter, count: int) -> None:
    batch = SimpleNamespace(ids=["a", "b"])
    for _ in range(count):
        time.sleep(0.002)  # waiting for data
        meter.on_train_batch_start(None, None, batch, 0)
        time.sleep(0.01)
        meter.on_train_batch_end(None, None, None, batch, 0)


def test_waiting_is_told_from_working():
    meter = CostMeter()
    steps(meter, WARMUP_STEPS + 6)
    meter.on_validation_end(None, None)
    time.sleep(0.5)  # belongs to no step
    steps(meter, 2)
    cost = meter.summary()
    assert 2 <= cost["wait_ms"] < 8 and 12 <= cost["step_ms"] < 40
    assert cost["pictures_seen"] == 2 * (WARMUP_STEPS + 8)
    again = CostMeter()
    again.load_state_dict(meter.state_dict())
    assert again.summary() == cost


def test_too_short_to_tell():
    meter = CostMeter()
    steps(meter, 2)
    assert meter.summary()["wait_ms"] is None and meter.summary()["step_ms"] is None
