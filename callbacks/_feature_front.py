"""The frozen front of a module's backbone, and how long a schedule leaves it as it is."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lit_transfer._selection import select
from lit_transfer.callbacks._progress import lengths, progress_of
from lit_transfer.callbacks.finetuning_schedule import FinetuningSchedule
from lit_transfer.features import Boundary, Fast, WorkingCopy, earlier, find_boundary, frozen_state
from lit_transfer.schedule import phase_at

__all__ = ["Front", "earlier_fronts", "find_front", "follow_schedules"]


@dataclass(frozen=True)
class Front:
    """The frozen front of a module's backbone.

    Attributes:
        module: The module.
        name: Dotted name of the backbone in it.
        boundary: Where the front ends.
        state: Parameters and buffers of the front.
        versions: How often torch had changed each of them in place when the front was found.
        copies: Copies of it that compute faster, by how they do and the batch size, while loaders are being filled.
    """

    module: LightningModule
    name: str
    boundary: Boundary
    state: dict[str, Tensor]
    versions: tuple[int, ...]
    copies: dict[tuple[Fast, int], WorkingCopy] = field(default_factory=dict, compare=False)

    @property
    def backbone(self) -> nn.Module:
        """The backbone."""
        return self.module.get_submodule(self.name)

    @property
    def unit(self) -> nn.Module:
        """The module whose output crosses."""
        return self.backbone.get_submodule(self.boundary.unit)

    @property
    def where(self) -> str:
        """Dotted name of that module."""
        return f"{self.name}.{self.boundary.unit}" if self.boundary.unit else self.name

    def trains(self) -> list[str]:
        """Return the names of its parameters that have a gradient by now."""
        return [f"{self.name}.{name}" for name, tensor in self.state.items() if tensor.requires_grad]

    def change(self, trainer: Trainer) -> str | None:
        """Say why its features cannot be used for the epoch that begins; None if they can."""
        if trains := self.trains():
            return f"{trains[0]} trains"
        if self.versions != tuple(tensor._version for tensor in self.state.values()):
            return "its weights have changed"
        return next(_phases_within(trainer, self), None)

    def holds(self, trainer: Trainer, epochs: int) -> bool:
        """Return whether it stays as it is for that many epochs from this one on, as far as run and schedules tell."""
        last, step = trainer.max_epochs, trainer.global_step
        if last not in (None, -1) and trainer.current_epoch + epochs > last:
            return False
        length = lengths(trainer, ())["epoch_length"] or 1
        if trainer.max_steps != -1 and step + epochs * length > trainer.max_steps:
            return False
        return next(_phases_within(trainer, self, epochs), None) is None


def find_front(module: LightningModule, name: str) -> Front | None:
    """Find the frozen front of the backbone of that name; None if its first stage trains.

    Raises:
        ValueError: The module has no such part.
    """
    known = dict(module.named_modules())
    if not name or name not in known:
        near = difflib.get_close_matches(name, [known_name for known_name in known if known_name], n=3, cutoff=0.0)
        raise ValueError(
            f"{type(module).__name__} has no module {name!r}: give the dotted name of its backbone as "
            f"FeatureCaching(backbone=...). Nearest: {', '.join(near)}."
        )
    boundary = find_boundary(known[name])
    if boundary is None:
        return None
    return _front(module, name, boundary)


def earlier_fronts(front: Front) -> list[Front]:
    """Give the fronts of fewer stages that a front begins with, the longest first."""
    return [_front(front.module, front.name, cut) for cut in earlier(front.backbone, front.boundary)]


def _front(module: LightningModule, name: str, boundary: Boundary) -> Front:
    state = frozen_state(module.get_submodule(name), boundary)
    return Front(module, name, boundary, state, tuple(tensor._version for tensor in state.values()))


def follow_schedules(trainer: Trainer, module: LightningModule) -> None:
    """Have each schedule beside this callback enter the phase of this epoch, whichever of the two is listed first."""
    for schedule in _schedules(trainer):
        schedule.on_train_epoch_start(trainer, module)


def _schedules(trainer: Trainer) -> list[FinetuningSchedule]:
    callbacks: list[object] = trainer.callbacks  # type: ignore[attr-defined]  # a connector of the Trainer sets it
    return [callback for callback in callbacks if isinstance(callback, FinetuningSchedule)]


def _phases_within(trainer: Trainer, front: Front, epochs: int = 1) -> Iterator[str]:
    """Say which phases that train something of the front may begin before the last step of these epochs."""
    named = dict(front.module.named_parameters())
    held = {id(tensor) for tensor in front.state.values()}
    for schedule in _schedules(trainer):
        run = schedule._run
        known = lengths(trainer, run.planned)
        progress = progress_of(trainer, fired=run.fired_at(), **known)
        now = phase_at(run.planned, progress)
        steps = known["epoch_length"] or 1
        end = replace(progress, epoch=progress.epoch + epochs - 1, step=progress.step + epochs * steps - 1)
        last = phase_at(run.planned, end)
        amid = trainer.val_check_batch is not None and trainer.val_check_batch < trainer.num_training_batches
        for number in range(now + 1, len(run.planned)):
            phase = run.planned[number]
            if number > last and not (amid and phase.when is not None):
                continue
            if any(id(named[name]) in held for name in select(front.module, phase.train, stages=run.stages)):
                yield f"phase {number + 1}, which trains a part of it, may begin in the middle of an epoch"
