"""What Lightning needs to be told or asked, so that a datamodule works with a plain Trainer."""

import warnings
from typing import cast

from lightning.pytorch import Trainer
from lightning.pytorch.loops.progress import _ProcessedTracker


def current_epoch(trainer: Trainer, batches: int) -> int:
    """Give the epoch whose batches come next, also before Lightning has worked out where a resumed run goes on.

    The first iterator of a run is made before `FitLoop.reset`: after a checkpoint of an epoch's last batch the counters
    still say that this epoch is running, with all of its batches done.

    Args:
        trainer: The trainer of the run.
        batches: Number of batches of an epoch.
    """
    loop = trainer.fit_loop
    epochs = cast("_ProcessedTracker", loop.epoch_progress.current)  # `trainer.current_epoch` counts later, at its end
    running = epochs.processed < epochs.ready
    return epochs.processed + int(running and loop.epoch_loop.batch_progress.current.ready >= batches)


def lower_log_interval(trainer: Trainer, batches: int) -> None:
    """See that a small set is logged once per epoch at least: Lightning's 50 steps would leave whole epochs out."""
    limit = trainer.limit_train_batches
    used = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # a connector of the Trainer sets it
    trainer.log_every_n_steps = min(interval, max(1, used))  # type: ignore[attr-defined]  # as above


def quiet_no_validation() -> None:
    """Silence the question whether having no validation images is meant: their share was set to 0."""
    warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")


def quiet_worker_advice() -> None:
    """Silence the advice to use more workers: their number was chosen, by the user or for so few images."""
    warnings.filterwarnings("ignore", message=r".*does not have many workers which may be a bottleneck")
