"""A schedule over a whole run, before any training: what trains and at which rate, step by step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn
from torch.optim import Optimizer

from lit_transfer._selection import is_norm, select
from lit_transfer.schedule._phases import Phase
from lit_transfer.schedule._presets import Preset, PresetName
from lit_transfer.schedule._progress import Progress, phase_at
from lit_transfer.schedule._running import RunningSchedule
from lit_transfer.stages import Stage

__all__ = ["Moment", "Steps", "timeline"]

_Groups = dict[str, list[dict[str, Any]]]


class Steps(Protocol):
    """What has a `step`, as the schedulers of torch have."""

    def step(self) -> None:
        """Go on by one."""


@dataclass(frozen=True)
class Moment:
    """One optimizer step of a run.

    Attributes:
        step: Its number, from 0.
        epoch: The epoch that it is in, from 0.
        phase: Index of the phase, from 0.
        trains: For each stage, the fraction of its elements that train.
        trainable: Number of elements that train.
        lr: For each stage that an optimizer holds, the highest rate with which it steps; 0 where it is frozen.
    """

    step: int
    epoch: int
    phase: int
    trains: dict[str, float]
    trainable: int
    lr: dict[str, float]


def timeline(
    module: nn.Module,
    phases: PresetName | Preset | Sequence[Phase],
    *,
    epochs: int,
    steps_per_epoch: int,
    max_steps: int | None = None,
    optimizers: Sequence[Optimizer] = (),
    every_step: Sequence[Steps] = (),
    every_epoch: Sequence[Steps] = (),
    train_norms: bool = False,
) -> list[Moment]:
    """Run through a schedule without data or training. Phases that wait for a metric start at their `at`, or never.

    Args:
        module: The complete module; it stays as it is.
        phases: The schedule.
        epochs: Epochs of the run.
        steps_per_epoch: Optimizer steps of each.
        max_steps: Optimizer steps after which the run ends, if that is before its last epoch does.
        optimizers: Optimizers, made for this purpose: their rates are moved.
        every_step: Their schedulers that step after each optimizer step.
        every_epoch: Their schedulers that step after each epoch.
        train_norms: Whether the norm affines of what is frozen train, as an option of `FinetuningSchedule`.

    Returns:
        One moment for each optimizer step.

    Raises:
        ValueError: The schedule does not fit the module or the optimizers.
    """
    schedule = RunningSchedule(phases)
    schedule.begin(module)
    schedule.attach(optimizers)
    trains = [_trains(module, phase.train, schedule.stages, train_norms) for phase in schedule.planned]
    groups = _groups(module, schedule.stages, optimizers)
    length = epochs * steps_per_epoch if max_steps is None else min(max_steps, epochs * steps_per_epoch)
    for optimizer in optimizers:
        optimizer.zero_grad()
        optimizer.step()  # moves nothing without gradients, and torch's schedulers ask for one before they step
    moments = []
    for step in range(length):
        progress = Progress(step // steps_per_epoch, step, length, epoch_length=steps_per_epoch)
        phase = phase_at(schedule.planned, progress)
        shares, trainable = trains[phase]
        lr = dict(_rates(groups, shares, schedule.factors(progress) or {}))
        moments.append(Moment(step, progress.epoch, phase, shares, trainable, lr))
        for scheduler in [*every_step, *(every_epoch if (step + 1) % steps_per_epoch == 0 else ())]:
            scheduler.step()
    return moments


def _trains(
    module: nn.Module, words: Sequence[str], stages: Sequence[Stage], train_norms: bool
) -> tuple[dict[str, float], int]:
    """The fraction of each stage that trains, and how many elements that are in all."""
    named = dict(module.named_parameters())
    chosen = {id(named[name]) for name in select(module, words, stages=stages)}
    if train_norms:
        chosen |= {id(p) for part in module.modules() if is_norm(part) for p in part.parameters(recurse=False)}
    shares, trainable = {}, 0
    for stage in stages:
        sizes = [(named[name].numel(), id(named[name]) in chosen) for name in stage.parameters]
        count = sum(size for size, trains in sizes if trains)
        shares[stage.name] = count / max(1, sum(size for size, _ in sizes))
        trainable += count
    return shares, trainable


def _groups(module: nn.Module, stages: Sequence[Stage], optimizers: Sequence[Optimizer]) -> _Groups:
    """The groups that hold parameters of each stage, whoever made them; no entry for a stage in no optimizer."""
    owner = {id(p): group for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    named = dict(module.named_parameters())
    groups: _Groups = {}
    for stage in stages:
        held = [owner[id(named[name])] for name in stage.parameters if id(named[name]) in owner]
        if held:
            groups[stage.name] = list({id(group): group for group in held}.values())
    return groups


def _rates(groups: _Groups, shares: Mapping[str, float], factors: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    for stage, held in groups.items():
        rate = max(float(group["lr"]) for group in held)
        yield stage, rate * factors.get(stage, 1.0) if shares[stage] else 0.0
