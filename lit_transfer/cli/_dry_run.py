"""What a run of `fit` would do with its schedule, found without training."""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lit_transfer.callbacks import FinetuningSchedule
from lit_transfer.schedule import Moment, Planned, plan_schedule, timeline, unreachable


@dataclass(frozen=True)
class DryRun:
    """What would happen.

    Attributes:
        epochs: Epochs of the run.
        steps_per_epoch: Optimizer steps of each.
        processes: Processes that share the batches of an epoch.
        moments: One for each optimizer step.
        notes: What cannot be known before training, or what the user may not have meant; one sentence each.
    """

    epochs: int
    steps_per_epoch: int
    processes: int
    moments: Sequence[Moment]
    notes: Sequence[str]


class DryTrainer(Trainer):
    """Goes as far as `fit` does before its first batch, in one process, and counts for as many as are wanted.

    Attributes:
        processes: How many processes are to share the batches of an epoch.
        answer: What `schedule` found.
    """

    processes: int = 1
    answer: DryRun

    @property
    def num_training_batches(self) -> int | float:
        """Batches of an epoch in each of the processes."""
        batches = super().num_training_batches
        return batches if math.isinf(batches) else math.ceil(batches / self.processes)

    def schedule(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Tell which stages would train when and at which learning rate, before any training.

        Args:
            model: The module that would be trained.
            datamodule: Its data.
            ckpt_path: As for fit; what is told is the whole run, from its first step.
            weights_only: As for fit; no checkpoint is read here.
        """
        settings: Any = self  # Lightning does not annotate what its connectors set
        settings.callbacks.append(_Ask())
        with suppress(_Answered):
            self.fit(model, datamodule=datamodule)


class _Answered(Exception):  # noqa: N818  # nothing went wrong
    """Ends the fit before its first batch."""


class _Ask(Callback):
    """Follows the schedule in `on_fit_start`, where the module, its optimizers and its schedulers are complete."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(trainer, DryTrainer)
        trainer.answer = _follow(trainer, pl_module)
        raise _Answered


def _follow(trainer: DryTrainer, module: LightningModule) -> DryRun:
    settings: Any = trainer
    schedule = next((c for c in settings.callbacks if isinstance(c, FinetuningSchedule)), None)
    phases, train_norms = (schedule.phases, schedule.train_norms) if schedule else ("full", False)
    epochs, steps, length = _lengths(trainer)
    followed = [c for c in trainer.lr_scheduler_configs if not c.reduce_on_plateau and module.automatic_optimization]
    moments = timeline(
        module,
        phases,
        epochs=epochs,
        steps_per_epoch=steps,
        max_steps=length,
        optimizers=trainer.optimizers,
        every_step=[_InEpoch(trainer, c.scheduler, c.frequency) for c in followed if c.interval == "step"],
        every_epoch=[_EveryNth(c.scheduler, c.frequency) for c in followed if c.interval == "epoch"],
        train_norms=train_norms,
    )
    planned = plan_schedule(phases, list(moments[0].trains))
    notes = [*_unknown(trainer), *_waiting(planned), *unreachable(planned, epochs, length)]
    if schedule is None:
        notes.insert(0, f"There is no FinetuningSchedule: shown is a run in which everything trains. {_ADD}")
    return DryRun(epochs, steps, trainer.processes, moments, notes)


_ADD = "Add one, e.g. --trainer.callbacks+=FinetuningSchedule --trainer.callbacks.phases=gradual"


def _lengths(trainer: DryTrainer) -> tuple[int, int, int]:
    """Give the epochs of the run, the optimizer steps of each, and those of the run.

    Raises:
        ValueError: If the run has no end, or an epoch no length.
    """
    trainer.fit_loop.setup_data()
    batches = trainer.num_training_batches
    if math.isinf(batches):
        raise ValueError(
            "the training data has no length, so that nothing can be told of its epochs: set "
            "--trainer.limit_train_batches to the number of batches in an epoch."
        )
    # With manual optimization Lightning's global_step counts the step of each optimizer.
    each = 1 if trainer.lightning_module.automatic_optimization else max(1, len(trainer.optimizers))
    steps = each * math.ceil(batches / trainer.accumulate_grad_batches)
    epochs = trainer.max_epochs or -1
    if epochs < 0 and trainer.max_steps < 0:
        raise ValueError("the run has no end: set --trainer.max_epochs or --trainer.max_steps.")
    length = epochs * steps if trainer.max_steps < 0 else trainer.max_steps
    return (epochs, steps, min(length, epochs * steps)) if epochs > 0 else (math.ceil(length / steps), steps, length)


class _EveryNth:
    """A scheduler that Lightning steps after every n-th epoch only."""

    def __init__(self, scheduler: Any, frequency: int) -> None:
        self.scheduler, self.frequency, self.done = scheduler, frequency, 0

    def step(self) -> None:
        self.done += 1
        if self.done % self.frequency == 0:
            self.scheduler.step()


class _InEpoch(_EveryNth):
    """A scheduler that Lightning steps after optimizer steps, its frequency being in batches of the epoch."""

    def __init__(self, trainer: Trainer, scheduler: Any, frequency: int) -> None:
        super().__init__(scheduler, frequency)
        self.batches, self.accumulated = int(trainer.num_training_batches), trainer.accumulate_grad_batches

    def step(self) -> None:
        self.done = min(self.done + self.accumulated, self.batches)
        if self.done % self.frequency == 0:
            self.scheduler.step()
        self.done %= self.batches


def _unknown(trainer: Trainer) -> Iterator[str]:
    if not trainer.lightning_module.automatic_optimization:
        yield "With manual optimization the schedulers are the module's own affair: shown are the rates before them."
    elif any(isinstance(c.scheduler, ReduceLROnPlateau) or c.reduce_on_plateau for c in trainer.lr_scheduler_configs):
        yield "ReduceLROnPlateau depends on a metric, which only training tells: it is left out."


def _waiting(planned: Sequence[Planned]) -> Iterator[str]:
    for number, phase in enumerate(planned, 1):
        if phase.when is not None:
            shown = "the latest start" if phase.at else "a run in which it never starts"
            name = phase.when.get("plateau") or phase.when.get("metric")
            yield f"Phase {number} waits for {name}, which only training tells: shown is {shown}."
