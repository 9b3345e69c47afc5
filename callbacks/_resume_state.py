"""What Lightning leaves out of its checkpoints: with it, a resumed run ends bitwise like an uninterrupted one."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import distributed
from torch.distributed.tensor import DTensor

from lit_transfer.callbacks._loop_state import (
    end_of_epoch,
    follow_end,
    follow_place,
    forget_begun_validation,
    is_batch_end,
    is_validation_due,
    loaders_again,
    step_plateau_schedulers,
)
from lit_transfer.callbacks._progress import is_open_window
from lit_transfer.restore import capture_random_state, restore_random_state

__all__ = ["RESUME", "ExactResume"]

RESUME = "lit_transfer_resume"  # the entry in a checkpoint; plain values only


class ExactResume(Callback):
    """Writes into each checkpoint what Lightning does not, and puts it back in `on_train_start`.

    That is the random state of every process, the gradients of an open window of accumulation, the metrics that
    schedulers and other callbacks go by, and whether the validation after the last batch was still to come.

    `on_save_checkpoint` runs in every process, unlike `state_dict`, whose answer is written by the first one alone.
    `on_train_start` is the last hook before the first batch, and the only one that a run meets wherever it goes on;
    where nothing is left to train Lightning never calls it, and `on_fit_end` puts back what is of use.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None
        self._epoch_ends = self._validating = False
        self._before_validation: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier run."""
        self._loaded, self._epoch_ends, self._validating = None, False, False

    # --- saving ---------------------------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the random state from which a validation after this batch starts."""
        due = is_validation_due(trainer)
        self._before_validation = capture_random_state(trainer.strategy.root_device) if due else None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that what is saved from now on is saved amid a validation."""
        self._validating = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that the validation is over."""
        self._validating = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the entry; a validation that is under way will be run again from its beginning."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        if self._validating:
            _tell_of_exchanged_weights(trainer)
        amid = self._before_validation if self._validating else None
        mine: dict[str, Any] = {"random": amid or capture_random_state(trainer.strategy.root_device)}
        if is_open_window(trainer):
            mine["gradients"] = _gradients(pl_module)
        ranks: list[Any] = [mine]
        if distributed.is_available() and distributed.is_initialized():
            ranks = [None] * distributed.get_world_size()
            distributed.all_gather_object(ranks, mine)
        due = self._validating or (is_batch_end(trainer) and is_validation_due(trainer))
        metrics = {name: value.detach().cpu() for name, value in trainer.callback_metrics.items()}
        checkpoint[RESUME] = {"ranks": ranks, "metrics": metrics, "validation_due": due}

    # --- going on -------------------------------------------------------------------------------------------------

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the entry, and let Lightning run what was still to come after the batch that was saved last."""
        self._loaded = checkpoint.get(RESUME) if trainer.state.fn == TrainerFn.FITTING else None
        if self._loaded is not None:
            self._epoch_ends = end_of_epoch(checkpoint["loops"]["fit_loop"], self._loaded["validation_due"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put everything back: loaders, counters, metrics, gradients, and at last the random state."""
        if self._loaded is None:
            return
        follow_place(trainer)
        forget_begun_validation(trainer)
        self._restore(trainer, pl_module)
        loaders_again(trainer, ends=self._epoch_ends)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put metrics, schedulers and random state back where the training had come to its end already."""
        if self._loaded is not None:
            follow_end(trainer)
            self._restore(trainer, pl_module)

    def _restore(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._loaded is not None
        loaded, self._loaded = self._loaded, None
        device = trainer.strategy.root_device
        trainer.callback_metrics.update({name: value.to(device) for name, value in loaded["metrics"].items()})
        step_plateau_schedulers(trainer)
        if len(loaded["ranks"]) == trainer.world_size:
            self._restore_rank(loaded["ranks"][trainer.global_rank], pl_module, device)
        else:
            rank_zero_info(
                f"The checkpoint was written by {len(loaded['ranks'])} process(es) and {trainer.world_size} go on: the "
                "place in the data is kept, the random state of each process is not."
            )

    def _restore_rank(self, mine: dict[str, Any], pl_module: LightningModule, device: torch.device) -> None:
        parameters = dict(pl_module.named_parameters())
        for name, gradient in mine.get("gradients", {}).items():
            if name in parameters and parameters[name].shape == gradient.shape:
                parameters[name].grad = gradient.to(parameters[name])
            else:
                rank_zero_warn(f"The gradient of {name!r} in the checkpoint has no parameter here that it fits.")
        if not restore_random_state(mine["random"], device):
            rank_zero_warn(f"The checkpoint has no random state for {device.type}: dropout there draws otherwise.")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let schedulers that go by a metric step after the resumed epoch too: Lightning leaves them out."""
        trainer.fit_loop._restarting = False


def _gradients(module: LightningModule) -> dict[str, torch.Tensor]:
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    if any(isinstance(gradient, DTensor) for gradient in found.values()):
        rank_zero_warn(
            "A checkpoint is written amid a window of accumulation, whose gradients are sharded and are not saved: a "
            "run that goes on from it does not end like the uninterrupted one. Save where a window ends."
        )
        return {}
    return {name: gradient.cpu() for name, gradient in found.items()}


def _tell_of_exchanged_weights(trainer: Trainer) -> None:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by its connector
    for callback in callbacks:
        if isinstance(callback, WeightAveraging):
            rank_zero_warn(
                f"A checkpoint is written amid a validation, where {type(callback).__name__} has exchanged the weights "
                "for their average: a run that goes on from it does not end like the uninterrupted one. Save in "
                "on_validation_start or on_validation_end."
            )
