"""Any checkpoint in the form that Lightning restores from, in two steps: before and after optimizers exist."""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_transfer.callbacks._lightning_checkpoint import as_lightning_checkpoint
from lit_transfer.callbacks._optimizer_states import fill_optimizers
from lit_transfer.restore import (
    TrainingState,
    gather_folder,
    is_as_written,
    is_distributed_folder,
    plain_root,
    read_training_state,
)
from lit_transfer.weights import Checkpoint, WeightsError, open_checkpoint
from lit_transfer.weights._report import few

__all__ = ["Reading", "read_for"]


@dataclass
class Reading:
    """A checkpoint that is being restored.

    Attributes:
        opened: The file.
        checkpoint: The dictionary that Lightning restores from, and reads the optimizers' states of at last.
        state: What the file holds by name; None for one that Lightning takes as it is.
        told: What is not carried over, in words.
    """

    opened: Checkpoint
    checkpoint: dict[str, Any]
    state: TrainingState | None = None
    told: list[str] = field(default_factory=list)

    def fill_optimizers(self, trainer: Trainer, arguments: Mapping[str, Any]) -> None:
        """Put the states of optimizers and schedulers in order, and tell what was carried over and what was not.

        Args:
            trainer: The trainer, whose optimizers exist.
            arguments: Those of `read_training_state`.
        """
        state = self.state
        self.told += fill_optimizers(
            self.checkpoint,
            trainer,
            lambda: state or read_training_state(trainer.lightning_module, self.opened, **arguments),
            by_position=arguments["optimizer"] == "restore" and (state is None or state.is_whole),
        )
        if state is not None:
            rank_zero_info(f"TolerantRestore: {self.opened.name}: {state}")
        if self.told:
            rank_zero_warn(f"TolerantRestore: not all of {self.opened.name} is carried over: {'; '.join(self.told)}.")


def read_for(
    trainer: Trainer,
    inner: CheckpointIO,
    path: str,
    weights_only: bool | None,
    arguments: Mapping[str, Any],
    *,
    best_score: bool,
) -> Reading:
    """Read a checkpoint for the module and the stage of a trainer; the module is not changed.

    Args:
        trainer: The trainer.
        inner: The CheckpointIO for what Lightning takes as it is.
        path: The file, or a folder of shards that a strategy of Lightning's wrote.
        weights_only: What the user gave to `fit`.
        arguments: Those of `read_training_state`.
        best_score: Whether the scores of the file are to be beaten.

    Raises:
        WeightsError: The file cannot be read or does not fit.
    """
    gathered = gather_folder(path) if is_distributed_folder(path) else None
    opened, module, told = open_checkpoint(gathered or path), trainer.lightning_module, list[str]()
    if is_as_written(opened, module.state_dict(), strict=module.strict_loading):
        checkpoint = gathered or _read_lightning(inner, path, weights_only, opened, told)
        return Reading(opened, checkpoint, None, told)
    state = read_training_state(module, opened, **arguments)
    told += state.lost
    if trainer.state.fn != TrainerFn.FITTING and state.fresh:
        raise WeightsError(f"{path} does not fill {few(state.fresh)}: there is nothing to measure")
    if state.kind == "lightning":
        checkpoint = gathered or _read_lightning(inner, path, weights_only, opened, told)
        checkpoint["state_dict"] = state.weights(module)
    else:
        checkpoint = as_lightning_checkpoint(state, trainer, path, best_score=best_score, told=told)
    return Reading(opened, checkpoint, state, told)


def _read_lightning(
    inner: CheckpointIO, path: str, weights_only: bool | None, opened: Checkpoint, told: list[str]
) -> dict[str, Any]:
    """Read a checkpoint of Lightning's own; what `weights_only` refuses is read without running anything in it.

    Args:
        inner: The strategy's CheckpointIO.
        path: The file.
        weights_only: What the user gave to `fit`.
        opened: The same file.
        told: Receives what is left out, being no plain value.
    """
    try:
        checkpoint = inner.load_checkpoint(path, weights_only=weights_only)
    except pickle.UnpicklingError:
        lost: list[str] = []
        checkpoint = plain_root(opened, lost)
        told += [f"{place}: no plain value" for place in lost]
    for name, empty in (("callbacks", {}), ("optimizer_states", []), ("lr_schedulers", [])):
        checkpoint.setdefault(name, empty)  # a checkpoint that was saved with its weights only
    return checkpoint
