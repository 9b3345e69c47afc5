"""Early stopping that waits for a schedule's last phase."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from lit_transfer.callbacks.finetuning_schedule import FinetuningSchedule

__all__ = ["PhasedStopping"]


class PhasedStopping(EarlyStopping):
    """Lightning's EarlyStopping, with its arguments, which beside a FinetuningSchedule counts from the last phase on.

    A plateau of the head alone is no reason to leave out the fine-tuning that was asked for: a validation in an earlier
    phase neither counts nor sets the best value. A phase that never starts is told by FinetuningSchedule.
    """

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge an epoch of the last phase."""
        if _is_last_phase(trainer):
            super().on_train_epoch_end(trainer, pl_module)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge a validation of the last phase, where there are several in an epoch or not one in each."""
        if _is_last_phase(trainer):
            super().on_validation_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say why the training ended."""
        if self.stopping_reason_message:
            rank_zero_info(f"Stopped in epoch {self.stopped_epoch}: {self.stopping_reason_message}")


def _is_last_phase(trainer: Trainer) -> bool:
    settings: Any = trainer  # Lightning does not annotate what its connectors set
    schedules = [c for c in settings.callbacks if isinstance(c, FinetuningSchedule)]
    return all(schedule._phase == len(schedule._run.planned) - 1 for schedule in schedules)
