"""A timeline for people and programs: its phases in a table, and its rates and states in a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from lit_transfer.schedule._timeline import Moment

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Stretch", "phase_table", "plot_timeline", "stretches"]


@dataclass(frozen=True)
class Stretch:
    """Successive moments in which the same phase holds.

    Attributes:
        phase: Index of the phase, from 0.
        epochs: The first and the last epoch, from 0.
        steps: The first and the last optimizer step, from 0.
        trains: For each stage, the fraction of its elements that train.
        trainable: Number of elements that train.
        lr: For each stage that an optimizer holds and that trains, its first, highest and last learning rate.
    """

    phase: int
    epochs: tuple[int, int]
    steps: tuple[int, int]
    trains: dict[str, float]
    trainable: int
    lr: dict[str, tuple[float, float, float]]


def stretches(moments: Sequence[Moment]) -> list[Stretch]:
    """Sum a timeline up: one entry for each stretch of steps in which the same phase holds."""
    return [_stretch(list(group)) for _, group in groupby(moments, key=lambda moment: moment.phase)]


def _stretch(moments: Sequence[Moment]) -> Stretch:
    first, last = moments[0], moments[-1]
    rates = {stage: [moment.lr[stage] for moment in moments] for stage in first.lr if first.trains[stage]}
    return Stretch(
        first.phase,
        (first.epoch, last.epoch),
        (first.step, last.step),
        first.trains,
        first.trainable,
        {stage: (values[0], max(values), values[-1]) for stage, values in rates.items()},
    )


def phase_table(moments: Sequence[Moment]) -> str:
    """Write a timeline as a table: one line for each stretch of steps in which the same phase holds."""
    rows: list[tuple[str, ...]] = [("phase", "epochs", "steps", "trains", "parameters", "highest learning rates")]
    for found in stretches(moments):
        states = {s: "-" if not share else "" if share == 1 else " (part)" for s, share in found.trains.items()}
        whole = all(share == 1 for share in found.trains.values())
        trains = ["all"] if whole else [f"{names}{state}" for names, state in _runs(states) if state != "-"]
        highest = {stage: f"{found.lr[stage][1]:.3g}" if stage in found.lr else "" for stage in found.trains}
        rates = [f"{names} {rate}" for names, rate in _runs(highest) if rate]
        spans = (f"{low}" if low == high else f"{low}-{high}" for low, high in (found.epochs, found.steps))
        rows.append((f"{found.phase + 1}", *spans, ", ".join(trains), f"{found.trainable:,}", ", ".join(rates)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _runs(told: Mapping[str, str]) -> list[tuple[str, str]]:
    """Join neighbouring stages of which the same is told: "stage1 to stage4"."""
    runs = []
    for value, group in groupby(told.items(), key=lambda item: item[1]):
        names = [name for name, _ in group]
        runs.append((names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}", value))
    return runs


def plot_timeline(moments: Sequence[Moment]) -> Figure:
    """Draw a timeline: the learning rate of each stage against steps, and below which of them trains when.

    Args:
        moments: What `timeline` gives; some may be left out, since each one holds until the next.

    Returns:
        The figure. A bar is as dark as the fraction of the stage that trains; dashed lines are changes of phase.
    """
    from matplotlib.figure import Figure

    stages = list(moments[0].trains)
    height = 0.4 + 0.28 * len(stages)
    figure = Figure(figsize=(8, 2.8 + height), layout="constrained")
    rates, states = figure.subplots(2, 1, sharex=True, height_ratios=[2.4, height])
    colors = dict(zip(stages, _colors(len(stages)), strict=True))
    _plot_rates(rates, moments, colors)
    _plot_states(states, moments, colors)
    for before, after in pairwise(moments):
        if before.phase != after.phase:
            for axes in (rates, states):
                axes.axvline(after.step, color="0.5", linewidth=0.8, linestyle="--")
    states.set(xlabel="optimizer step", xlim=(moments[0].step, moments[-1].step + 1))
    return figure


def _colors(count: int) -> list[tuple[float, float, float, float]]:
    from matplotlib import colormaps

    return [colormaps["viridis"](0.9 * place / max(1, count - 1)) for place in range(count)]


def _plot_rates(axes: Axes, moments: Sequence[Moment], colors: Mapping[str, object]) -> None:
    steps = [*(moment.step for moment in moments), moments[-1].step + 1]
    for stage, color in colors.items():
        values = [moment.lr.get(stage) or float("nan") for moment in moments]
        if any(value == value for value in values):
            axes.plot(steps, [*values, values[-1]], color=color, label=stage, drawstyle="steps-post")
    axes.set(ylabel="learning rate", yscale="log")
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, high * 1e-6))  # many schedules end near zero
    if axes.lines:
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5), reverse=True)


def _plot_states(axes: Axes, moments: Sequence[Moment], colors: Mapping[str, object]) -> None:
    ends = [*(moment.step for moment in moments[1:]), moments[-1].step + 1]
    for row, (stage, color) in enumerate(colors.items()):
        spans = [(moment.trains[stage], moment.step, end) for moment, end in zip(moments, ends, strict=True)]
        for share, group in groupby(spans, key=lambda span: span[0]):
            held = list(group)
            bar = [(held[0][1], held[-1][2] - held[0][1])]
            shade = {"facecolor": color, "alpha": 0.35 + 0.65 * share} if share else {"facecolor": "0.93"}
            axes.broken_barh(bar, (row - 0.4, 0.8), **shade)
    axes.set(yticks=range(len(colors)), yticklabels=list(colors))
