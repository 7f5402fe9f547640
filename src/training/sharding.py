"""Fully sharded training (``trainer.strategy=fsdp``): every process keeps a slice of weights, gradients and moments.

Rajbhandari et al. 2020 (ZeRO, arXiv 1910.02054, stage 3); here torch's ``fully_shard`` ("FSDP2") under Lightning's
``ModelParallelStrategy``, on GPUs or CPU processes. Checkpoints are the same files as those of one process, so a run
can go on with another number of devices, and every verb reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only
from transformers.pytorch_utils import Conv1D

from src.errors import UserError


class FullySharded(ModelParallelStrategy):
    """All devices in one data-parallel group; checkpoints are whole, and written by the first process.

    Lightning's own way with the optimiser numbers its states by parameter of the model, not by place in the optimiser,
    and so makes checkpoints that only it can read.
    """

    lightning_restore_optimizer = True

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def on_validation_start(self) -> None:
        """Statistics of batch norms, which every process takes of its own pictures, are the first one's, as in DDP."""
        for buffer in self.lightning_module.buffers():
            distributed.broadcast(buffer, src=0)

    def lightning_module_state_dict(self) -> dict:
        return self._mine(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict:
        return self._mine(optimizer.state_dict())

    def _mine(self, state: dict) -> dict:
        """The state with whole tensors, in the first process; the others help to put them together, and keep none."""
        found = tree_map_only(DTensor, lambda tensor: whole(tensor).cpu(), state)
        return found if self.is_global_zero else {}

    def load_checkpoint(self, checkpoint_path, weights_only: bool | None = None) -> dict:
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Mapping, strict: bool = True) -> None:
        here = self.lightning_module.state_dict()
        state = {name: sliced(tensor, here.get(name)) for name, tensor in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            state = {
                number: {name: sliced(value, parameters[number]) for name, value in moments.items()}
                for number, moments in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})


def shard(captioner: nn.Module, mesh: DeviceMesh) -> None:
    """Shard all parameters of a Captioner over ``mesh``. Raises UserError for a parameter that cannot be.

    The matrices of the language model's blocks, which are most of a large model, are gathered one at a time where they
    are used, and freed again. Everything else is gathered once a step: a mechanism may use its parameters as it likes,
    and word vectors are input and output.
    """
    for name, parameter in captioner.named_parameters():
        if parameter.ndim == 0:
            raise UserError(f"{name} is a single number, which cannot be sharded; give it the shape (1,).")
    for matrix in _matrices(captioner.language):
        fully_shard(matrix, mesh=mesh)
    fully_shard(captioner, mesh=mesh, reshard_after_forward=False)
    for method in ("training_step", "validation_step"):
        register_fsdp_forward_method(captioner, method)


def _matrices(language: nn.Module) -> Iterator[nn.Module]:
    """Linear layers of the language model but its output, which may be tied to the input."""
    for module in language.modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not language.model.lm_head:
            yield module


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of which this process may hold a slice. All processes have to ask together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sliced(tensor: Tensor, like: Tensor | None) -> Tensor:
    """This process's slice of a full tensor, where ``like`` is sharded and of the same shape; else as it is."""
    if isinstance(like, DTensor) and tensor.shape == like.shape:
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return tensor
