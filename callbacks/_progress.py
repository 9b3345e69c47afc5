"""Where a trainer stands in its run, as the schedule asks for it."""

import math
from collections.abc import Mapping, Sequence

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities import rank_zero_warn

from lit_transfer.schedule import Planned, Progress, unreachable

__all__ = ["is_open_window", "lengths", "progress_of", "tell_cut_short", "untold"]


def progress_of(
    trainer: Trainer,
    *,
    length: int | None = None,
    epoch_length: int | None = None,
    fired: Mapping[int, int] | None = None,
) -> Progress:
    """Return the trainer's place: epochs and optimizer steps done, as they are restored from a checkpoint too."""
    return Progress(trainer.current_epoch, trainer.global_step, length, fired or {}, epoch_length)


def lengths(trainer: Trainer, phases: Sequence[Planned]) -> dict[str, int | None]:
    """Return the optimizer steps of the run if a phase asks for them, and those of an epoch; None for no end.

    To be called when the training loader exists: Lightning would build it to count.
    """
    module = trainer.lightning_module
    # With manual optimization Lightning's global_step counts the step of each optimizer.
    each = 1 if module.automatic_optimization else max(1, len(trainer.optimizers))
    batches = trainer.num_training_batches
    epoch = None if batches == math.inf else each * math.ceil(batches / trainer.accumulate_grad_batches)
    if not any(phase.at is not None and phase.at[0] != "epoch" and phase.at[1] > 0 for phase in phases):
        return {"length": None, "epoch_length": epoch}
    steps = trainer.estimated_stepping_batches
    return {"length": None if steps in {-1, math.inf} else each * int(steps), "epoch_length": epoch}


def is_open_window(trainer: Trainer) -> bool:
    """Return whether gradients of the last batch wait for more to be accumulated."""
    return trainer.fit_loop.epoch_loop._should_accumulate()


def untold(trainer: Trainer, phases: Sequence[Planned], length: int | None) -> list[str]:
    """Say which phases this run never enters."""
    epochs = trainer.max_epochs
    told = unreachable(phases, None if epochs in {None, -1} else epochs, length)
    waits = [str(number) for number, phase in enumerate(phases, 1) if phase.when is not None]
    if waits and not trainer.enable_validation:
        told.append(f"Phase {waits[0]} waits for a metric, and the run has no validation to log one.")
    return told


def tell_cut_short(trainer: Trainer, phases: Sequence[Planned], index: int) -> None:
    """Warn where early stopping ended a fit before the last phase began."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by its connector
    stopped = any(isinstance(callback, EarlyStopping) and callback.stopped_epoch for callback in callbacks)
    if stopped and index < len(phases) - 1:
        rank_zero_warn(
            f"FinetuningSchedule: EarlyStopping ended the fit in phase {index + 1} of {len(phases)}. PhasedStopping, "
            "which takes the same arguments, waits for the last phase (--patience on the command line)."
        )
