"""GPUs that fail in the middle of the work or are full, killed data workers: one sentence, nothing lost, others go on.

There is no GPU here. Its errors are raised where they would be: in a training step, and again at all that follows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from test_resume import assert_same, ended_at
from test_verbs import SMOKE

from src.config.machine_faults import LONGEST, explaining_machine_faults, machine_fault
from src.errors import UserError

# As torch says it, with the lines that follow the first.
MORE = (
    "\nCUDA kernel errors might be asynchronously reported at some other API call.\nCompile with `TORCH_USE_CUDA_DSA`"
)
LOST = torch.AcceleratorError(f"CUDA error: unspecified launch failure{MORE}")
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB")

# Step 3 of 6 fails on the GPU, and so does taking the model off it. argv: folder, the error, options.
PLANTED = """
import sys, torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from src import train
from src.captioner import Captioner
folder, error, options = sys.argv[1], sys.argv[2], sys.argv[3:]
step, teardown = Captioner.training_step, SingleDeviceStrategy.teardown
def train_in(name, *more):
    sys.argv[1:] = [*options, *more, f"hydra.run.dir='{folder}/{name}'"]
    train.main()
def planted(self, batch, index):
    if self.global_step == 3:
        raise eval(error)
    return step(self, batch, index)
def gone(self):
    raise torch.AcceleratorError("CUDA error: the launch timed out and was terminated")
Captioner.training_step, SingleDeviceStrategy.teardown = planted, gone
try:
    train_in("failed")
except SystemExit as end:
    assert end.code == 2
Captioner.training_step, SingleDeviceStrategy.teardown = step, teardown
if "OutOfMemory" not in error:
    train_in("failed-not", "resume=auto")
    train_in("../whole/run")
"""

# The first data worker that is asked for its fifth batch is killed, as a full machine does it. argv: folder, options.
KILLED = """
import os, signal, sys
from pathlib import Path
from torch.utils.data import get_worker_info
from src import train
from src.loading.batches import CaptionBatches
folder, options = sys.argv[1], sys.argv[2:]
take, count, once = CaptionBatches.__getitem__, [0], Path(folder, "killed")
def planted(self, pick):
    count[0] += 1
    if get_worker_info() and count[0] == 5 and not once.exists():
        once.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return take(self, pick)
CaptionBatches.__getitem__ = planted
def train_in(name, *more):
    sys.argv[1:] = [*options, *more, f"hydra.run.dir='{folder}/{name}'"]
    train.main()
try:
    train_in("failed")
except SystemExit as end:
    assert end.code == 2
train_in("failed", "resume=auto")
train_in("whole")
"""

# Found by Python at its start: the jobs of one mechanism have a GPU that fails.
CUSTOMIZE = """
import sys
from importlib.machinery import PathFinder
class Planted:
    def find_spec(name, path=None, target=None):
        if name != "src.captioner" or "fusion=clipcap" not in sys.argv:
            return None
        spec = PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module
        def exec_module(module):
            execute(module)
            def fails(self, batch, index):
                raise RuntimeError("CUDA error: unspecified launch failure")
            module.Captioner.training_step = fails
        spec.loader.exec_module = exec_module
        return spec
sys.meta_path.insert(0, Planted)
"""


@pytest.mark.slow
@pytest.mark.parametrize("error", [LOST, FULL], ids=["lost", "full"])
def test_a_gpu_that_fails_in_a_training_loses_nothing(error, tmp_path):
    """Validated, and so saved, after every second step."""
    planted = f"torch.{type(error).__name__}({str(error)!r})"
    options = [*SMOKE, "fusion=clipcap", "trainer.max_steps=6", "language.model.dropout=0.1"]
    command = [sys.executable, "-c", PLANTED, str(tmp_path / "runs"), planted, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr[-2000:]
    (sentence,) = (line for line in answer.stderr.splitlines() if "error: " in line)
    failed = tmp_path / "runs" / "failed"
    assert "Traceback" not in answer.stderr and "timed out" not in sentence
    assert f"The last checkpoint is kept in {failed}/checkpoints, and the same command with resume=auto" in sentence
    assert torch.load(failed / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    assert not (failed / "result.json").exists()
    if error is FULL:
        assert "The memory of the GPU is not enough (CUDA out of memory. Tried to allocate 2.00 GiB." in sentence
        assert "language.recompute=true needs less" in sentence and "half of data.batch_size" in sentence
    else:
        assert "The GPU failed (CUDA error: unspecified launch failure)." in sentence
        assert_same(ended_at(tmp_path / "whole" / "run"), ended_at(tmp_path / "runs" / "failed-not"))


@pytest.mark.slow
def test_a_killed_data_worker_ends_the_training_with_a_sentence_and_nothing_lost(tmp_path):
    options = [*SMOKE, "fusion=clipcap", "trainer.max_steps=6", "language.model.dropout=0.1", "data.workers=1"]
    command = [sys.executable, "-c", KILLED, str(tmp_path), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr[-2000:]
    assert (tmp_path / "killed").exists() and "Traceback" not in answer.stderr
    (sentence,) = (line for line in answer.stderr.splitlines() if "error: " in line)
    assert "A process that loads data was ended from outside (DataLoader worker (pid" in sentence
    assert "is killed by signal: Killed" in sentence and "data.workers" in sentence
    assert f"The last checkpoint is kept in {tmp_path}/failed/checkpoints, and the same" in sentence
    assert_same(ended_at(tmp_path / "whole"), ended_at(tmp_path / "failed"))


@pytest.mark.slow
def test_in_a_sweep_the_other_jobs_go_on(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(CUSTOMIZE)
    words = ["-m", *SMOKE, "trainer.max_steps=2", "hydra.launcher.jobs=1", "fusion=clipcap,blind"]
    command = [sys.executable, "-m", "src.train", *words, f"hydra.sweep.dir='{tmp_path}/sweep'"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tmp_path}/site:{ROOT}"}
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 1 and "1 of 2 jobs have results" in answer.stdout, answer.stdout + answer.stderr
    (failed,) = (line for line in answer.stdout.splitlines() if "failed:" in line)
    assert "clipcap" in failed and "The GPU failed (CUDA error: unspecified launch failure). There is no che" in failed
    assert [json.loads(path.read_text())["score"] for path in (tmp_path / "sweep").glob("*blind*/result.json")]


@pytest.mark.parametrize(
    "said",
    [
        "CUDA driver error: device kernel image is invalid",
        "CUDNN_STATUS_EXECUTION_FAILED",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`",
        "NCCL communicator was aborted on rank 1",
        "No CUDA GPUs are available",
    ],
)
def test_what_libraries_say_of_a_lost_gpu(said):
    with pytest.raises(UserError) as caught, explaining_machine_faults():
        raise RuntimeError(f"{said}{MORE}")
    sentence = str(caught.value)
    assert sentence.startswith(f"The GPU failed ({said}).") and "\n" not in sentence and "resume" not in sentence


def test_a_gpu_that_is_full(tmp_path):
    for said in (FULL, RuntimeError("CUDA error: out of memory"), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")):
        with (
            pytest.raises(UserError, match=r"memory of the GPU is not enough .* smaller batches"),
            explaining_machine_faults(),
        ):
            raise said
    with pytest.raises(UserError, match="There is no checkpoint yet") as caught, explaining_machine_faults(tmp_path):
        raise torch.OutOfMemoryError("CUDA out of memory " + "and more " * 100)
    assert len(str(caught.value)) < LONGEST + 400


def test_other_errors_are_left_alone(monkeypatch):
    for error in (RuntimeError("shapes do not fit"), KeyError("cuda"), UserError("trainer.accelerator=cuda: no NCCL")):
        with pytest.raises(type(error)) as caught, explaining_machine_faults():
            raise error
        assert caught.value is error
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")  # who looks for the place wants the traceback
    with pytest.raises(torch.AcceleratorError), explaining_machine_faults():
        raise LOST


def test_the_first_fault_is_the_one_that_counts():
    try:
        try:
            raise LOST
        except RuntimeError:
            raise RuntimeError("CUDA error: the launch timed out") from None
    except RuntimeError as error:
        assert machine_fault(error) is LOST
