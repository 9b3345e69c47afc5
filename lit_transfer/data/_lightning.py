"""What Lightning needs to be told or asked, so that a datamodule works with a plain Trainer."""

import warnings

from lightning.pytorch import Trainer


def data_rank(trainer: Trainer | None) -> tuple[int, int]:
    """Give the number of this process and how many there are, counting those once that share a model's parts."""
    given = None if trainer is None else trainer.distributed_sampler_kwargs
    return (0, 1) if given is None else (given["rank"], given["num_replicas"])


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
