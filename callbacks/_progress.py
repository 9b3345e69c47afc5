"""Where a trainer stands in its run, as the schedule asks for it."""

import math
from collections.abc import Mapping, Sequence

from lightning.pytorch import Trainer

from lit_transfer.schedule import Planned, Progress, unreachable

__all__ = ["progress_of", "run_length", "untold"]


def progress_of(trainer: Trainer, length: int | None = None, fired: Mapping[int, int] | None = None) -> Progress:
    """Return the trainer's place: epochs and optimizer steps done, as they are restored from a checkpoint too."""
    return Progress(trainer.current_epoch, trainer.global_step, length, fired or {})


def run_length(trainer: Trainer, phases: Sequence[Planned]) -> int | None:
    """Return the optimizer steps of the run if a phase asks for them, else None, as for a run without end.

    Lightning builds the training loader to count them, so it is asked late and only where it matters.
    """
    if not any(phase.at is not None and phase.at[0] != "epoch" and phase.at[1] > 0 for phase in phases):
        return None
    steps = trainer.estimated_stepping_batches
    if steps in {-1, math.inf}:
        return None
    module = trainer.lightning_module
    # With manual optimization Lightning's global_step counts each optimizer's step.
    return int(steps) * (1 if module.automatic_optimization else max(1, len(trainer.optimizers)))


def untold(trainer: Trainer, phases: Sequence[Planned], length: int | None) -> list[str]:
    """Say which phases this run never enters."""
    epochs = trainer.max_epochs
    told = unreachable(phases, None if epochs in {None, -1} else epochs, length)
    waits = [str(number) for number, phase in enumerate(phases, 1) if phase.when is not None]
    if waits and not trainer.enable_validation:
        told.append(f"Phase {waits[0]} waits for a metric, and the run has no validation to log one.")
    return told
