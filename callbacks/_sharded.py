"""Strategies that read checkpoints by themselves, once the module is sharded: FSDP2 gets a path of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from lit_transfer.restore import is_as_written
from lit_transfer.weights import WeightsError, open_checkpoint

__all__ = ["fill_sharded", "reads_by_itself", "take_over", "withdraw"]

Load: TypeAlias = Callable[[str, bool | None], dict[str, Any]]


def reads_by_itself(strategy: Strategy) -> bool:
    """Whether the strategy reads without its CheckpointIO: ModelParallel, FSDP, DeepSpeed."""
    return type(strategy).load_checkpoint is not Strategy.load_checkpoint


def take_over(trainer: Trainer, load: Load) -> None:
    """Hand single files to `load(path, weights_only)`; folders of shards, which have names inside, stay the strategy's.

    ModelParallelStrategy gives moments to parameters by their position in the model, where optimizers save them by
    their position in the groups: other groups than the model's order would get each other's moments.

    Raises:
        WeightsError: When a file is read that another strategy cannot take as it is.
    """
    strategy, kind = trainer.strategy, type(trainer.strategy)

    def load_checkpoint(checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        path = str(checkpoint_path)
        if Path(path).is_dir():
            return kind.load_checkpoint(strategy, path, weights_only)
        if isinstance(strategy, ModelParallelStrategy):
            return load(path, weights_only)
        if is_as_written(open_checkpoint(path), trainer.lightning_module.state_dict()):
            return kind.load_checkpoint(strategy, path, weights_only)
        raise WeightsError(
            f"{path} is no checkpoint that {kind.__name__} can take as it is, and it reads checkpoints by itself. Use "
            "strategy='ddp' or ModelParallelStrategy, or take the weights only, with the callback WeightLoading."
        )

    vars(strategy)["load_checkpoint"] = load_checkpoint


def withdraw(strategy: Strategy) -> None:
    """Undo `take_over`."""
    vars(strategy).pop("load_checkpoint", None)


def fill_sharded(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Put weights and optimizer states, whole in every process, into the shards of this one.

    Args:
        trainer: The trainer, whose module is sharded and whose optimizers exist.
        checkpoint: What Lightning is going to restore the rest of; weights and optimizer states are taken out.
    """
    _fill_module(trainer.lightning_module, checkpoint.pop("state_dict"))
    for optimizer, state in zip(trainer.optimizers, checkpoint["optimizer_states"], strict=False):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        keys = [key for group in state["param_groups"] for key in group["params"]]
        for key, parameter in zip(keys, parameters, strict=True):
            for name, value in state["state"].get(key, {}).items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    state["state"][key][name] = _like(value, parameter)
        optimizer.load_state_dict(state)
    checkpoint["state_dict"], checkpoint["optimizer_states"] = {}, []


@torch.no_grad()
def _fill_module(module: nn.Module, values: dict[str, Tensor]) -> None:
    for name, slot in module.state_dict().items():
        if isinstance(slot, Tensor) and values[name] is not slot:
            slot.copy_(_like(values[name], slot))


def _like(value: Tensor, like: Tensor) -> Tensor:
    """The value in shards as `like` is; every process has all of it, so that none has to send any."""
    if not isinstance(like, DTensor) or isinstance(value, DTensor):
        return value
    on_device = value.to(dtype=like.dtype, device=like.device)
    return distribute_tensor(on_device, like.device_mesh, like.placements, src_data_rank=None)
