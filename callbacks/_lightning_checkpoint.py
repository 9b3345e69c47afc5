"""A foreign training state in the form of a checkpoint that Lightning itself might have written."""

import copy
import math
from importlib.metadata import version
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from lit_transfer.restore import TrainingState, plain_value, score_for

__all__ = ["as_lightning_checkpoint", "count_steps"]


def as_lightning_checkpoint(
    state: TrainingState, trainer: Trainer, path: str, *, best_score: bool, told: list[str]
) -> dict[str, Any]:
    """Make the dictionary that Lightning restores from; the optimizers, which do not exist yet, are filled in later.

    Args:
        state: What was read.
        trainer: The trainer that runs.
        path: The file, which counts as the best checkpoint so far where it brings a score.
        best_score: Whether the scores of the file are to be beaten.
        told: Receives what could not be carried over.
    """
    checkpoint: dict[str, Any] = {
        "pytorch-lightning_version": version("lightning"),  # without it Lightning migrates from the oldest format
        "state_dict": state.weights(trainer.lightning_module),
        "epoch": state.epoch or 0,
        "global_step": state.step or 0,
        "callbacks": {},  # without it no callback's on_load_checkpoint runs
        "optimizer_states": [],
        "lr_schedulers": [],
    }
    if trainer.state.fn == TrainerFn.FITTING:
        checkpoint["loops"] = {"fit_loop": _loops(trainer, state.epoch or 0, state.step or 0)}
        checkpoint["callbacks"] = _best_scores(state, trainer, path, told) if best_score else {}
        checkpoint.update(_scaler(state, trainer, told))
    return checkpoint


def count_steps(trainer: Trainer, epochs: int) -> None:
    """Count the optimizer steps that `epochs` epochs of this run make, for a file that does not count its own."""
    batches = trainer.num_training_batches
    if batches == math.inf or not trainer.lightning_module.automatic_optimization:
        return
    loop = trainer.fit_loop.epoch_loop
    steps = epochs * math.ceil(batches / trainer.accumulate_grad_batches)
    progress = loop.automatic_optimization.optim_progress.optimizer.step.total
    progress.ready = progress.completed = loop._batches_that_stepped = steps


def _loops(trainer: Trainer, epoch: int, step: int) -> dict[str, Any]:
    """The state of the fit loop before the first batch of an epoch; its shape is that of the running version."""
    state = copy.deepcopy(trainer.fit_loop.state_dict())
    for progress in state["epoch_progress"].values():
        progress.update(dict.fromkeys(progress, epoch))  # all equal: the last epoch ended, none is under way
    automatic = state["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]
    manual = state["epoch_loop.manual_optimization.optim_step_progress"]
    for total in (automatic["total"], manual["total"], state["epoch_loop.batch_progress"]["total"]):
        total.update(dict.fromkeys(total, step))
    state["epoch_loop.state_dict"]["_batches_that_stepped"] = step
    return state


def _best_scores(state: TrainingState, trainer: Trainer, path: str, told: list[str]) -> dict[str, Any]:
    """The states of the callbacks that keep or stop by a score of the file."""
    made: dict[str, Any] = {}
    used = set()
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set by its connector
        monitor, mode = getattr(callback, "monitor", None), getattr(callback, "mode", "")
        found = score_for(state.scores, monitor, mode) if monitor and _keeps_best(callback) else None
        if found is not None:
            used.add(found[0])
            made[callback.state_key] = _with_score(callback, torch.tensor(found[1]), path)
    told += [
        f"{name}={value:g}: no callback of this run watches it"
        for name, value in state.scores.items()
        if name not in used
    ]
    return made


def _keeps_best(callback: Callback) -> bool:
    return isinstance(callback, EarlyStopping) or (isinstance(callback, ModelCheckpoint) and callback.save_top_k > 0)


def _with_score(callback: Callback, score: torch.Tensor, path: str) -> dict[str, Any]:
    state = callback.state_dict()
    if isinstance(callback, EarlyStopping):
        return {**state, "best_score": score}
    # Lightning removes the worst of the best once it is beaten, but never the file that a run goes on from.
    return {
        **state,
        "best_model_score": score,
        "best_model_path": path,
        "best_k_models": {path: score},
        "kth_best_model_path": path,
        "kth_value": score,
    }


def _scaler(state: TrainingState, trainer: Trainer, told: list[str]) -> dict[str, Any]:
    """The gradient scaler's state under the name of the precision plugin, if it scales too."""
    plugin = trainer.precision_plugin
    if state.scaler is None:
        return {}
    if not plugin.state_dict():
        told.append("the gradient scaler: this run has none")
        return {}
    return {type(plugin).__qualname__: plain_value(state.scaler, [])}
