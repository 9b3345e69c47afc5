"""A schedule over a whole run, before any training: what trains and at which rate, step by step, and its picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_transfer._selection import select
from lit_transfer.schedule._phases import Phase
from lit_transfer.schedule._presets import Preset, PresetName
from lit_transfer.schedule._progress import Progress, phase_at
from lit_transfer.schedule._running import RunningSchedule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Moment", "phase_table", "plot_timeline", "timeline"]


@dataclass(frozen=True)
class Moment:
    """One optimizer step of a run.

    Attributes:
        step: Its number, from 0.
        phase: Index of the phase, from 0.
        trains: For each stage, the fraction of its elements that train.
        lr: For each stage the optimizers tell of, the rate with which it steps; 0 where it is frozen.
    """

    step: int
    phase: int
    trains: dict[str, float]
    lr: dict[str, float]


def timeline(
    module: nn.Module,
    phases: PresetName | Preset | Sequence[Phase],
    *,
    epochs: int,
    steps_per_epoch: int,
    optimizers: Sequence[Optimizer] = (),
    every_step: Sequence[LRScheduler] = (),
    every_epoch: Sequence[LRScheduler] = (),
) -> list[Moment]:
    """Run through a schedule without data or training. Phases that wait for a metric start at their `at`, or never.

    Args:
        module: The complete module; it stays as it is.
        phases: The schedule.
        epochs: Epochs of the run.
        steps_per_epoch: Optimizer steps of each.
        optimizers: Optimizers with groups of `param_groups`, made for this purpose: their rates are moved.
        every_step: Their schedulers that step after each optimizer step.
        every_epoch: Their schedulers that step after each epoch.

    Returns:
        One moment for each optimizer step.

    Raises:
        ValueError: The schedule does not fit the module or the optimizers.
    """
    schedule = RunningSchedule(phases)
    schedule.begin(module)
    schedule.attach(optimizers)
    shares = [_shares(module, phase.train, schedule) for phase in schedule.planned]
    for optimizer in optimizers:
        optimizer.zero_grad()
    moments = []
    for step in range(epochs * steps_per_epoch):
        progress = Progress(step // steps_per_epoch, step, epochs * steps_per_epoch, epoch_length=steps_per_epoch)
        phase = phase_at(schedule.planned, progress)
        factors = schedule.factors(progress) or {}
        lr = {
            group["stage"]: float(group["lr"]) * factors.get(group["stage"], 1.0) * (shares[phase][group["stage"]] > 0)
            for optimizer in optimizers
            for group in optimizer.param_groups
            if "stage" in group
        }
        moments.append(Moment(step, phase, shares[phase], lr))
        for optimizer in optimizers:
            optimizer.step()  # moves nothing without gradients, and torch's schedulers ask for it
        for scheduler in [*every_step, *(every_epoch if (step + 1) % steps_per_epoch == 0 else ())]:
            scheduler.step()
    return moments


def _shares(module: nn.Module, words: Sequence[str], schedule: RunningSchedule) -> dict[str, float]:
    named = dict(module.named_parameters())
    trains = set(select(module, words, stages=schedule.stages))
    shares = {}
    for stage in schedule.stages:
        whole = sum(named[name].numel() for name in stage.parameters)
        shares[stage.name] = sum(named[name].numel() for name in stage.parameters if name in trains) / max(whole, 1)
    return shares


def phase_table(moments: Sequence[Moment]) -> str:
    """Write a timeline as a table: one line for each stretch of steps in which the same phase holds."""
    lines = []
    for index, first in enumerate(moments):
        if index == 0 or moments[index - 1].phase != first.phase:
            last = next((m.step for m in moments[index:] if m.phase != first.phase), moments[-1].step + 1) - 1
            trains = [f"{name}{'' if share == 1 else ' (part)'}" for name, share in first.trains.items() if share]
            rates = {name: rate for name, rate in moments[last].lr.items() if rate}
            told = ", ".join(f"{name} {rate:.3g}" for name, rate in rates.items())
            lines.append((f"{first.phase + 1}", f"{first.step}-{last}", ", ".join(trains), told))
    rows = [("phase", "steps", "trains", "learning rates at its end"), *lines]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def plot_timeline(moments: Sequence[Moment]) -> Figure:
    """Draw a timeline: the learning rate of each stage against steps, and below which of them trains when."""
    from matplotlib.figure import Figure

    stages = list(moments[0].trains)
    figure = Figure(figsize=(8, 2.5 + 0.3 * len(stages)), layout="constrained")
    rates, states = figure.subplots(2, 1, sharex=True, height_ratios=[2, 0.3 * len(stages)])
    steps = [moment.step for moment in moments]
    for row, stage in enumerate(stages):
        shares = [moment.trains[stage] for moment in moments]
        color = f"C{row % 10}"
        if any(stage in moment.lr for moment in moments):
            values = [moment.lr.get(stage) or float("nan") for moment in moments]
            rates.plot(steps, values, color=color, label=stage, drawstyle="steps-post")
        for share, start, width in _stretches(shares):
            states.broken_barh([(start, width)], (row - 0.4, 0.8), facecolor=color, alpha=0.08 + 0.92 * share)
    rates.set(ylabel="learning rate", yscale="log")
    if rates.get_legend_handles_labels()[0]:
        rates.legend(fontsize="small", ncols=min(4, len(stages)))
    states.set(xlabel="optimizer step", yticks=range(len(stages)), yticklabels=stages)
    return figure


def _stretches(shares: Sequence[float]) -> list[tuple[float, int, int]]:
    found: list[Any] = []
    for step, share in enumerate(shares):
        if found and found[-1][0] == share:
            found[-1][2] += 1
        else:
            found.append([share, step, 1])
    return [tuple(stretch) for stretch in found]
