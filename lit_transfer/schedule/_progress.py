"""Which phase a point of the run is in: a pure function of epoch, step and the moments at which metrics fired."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lit_transfer.schedule._phases import Planned

__all__ = ["Progress", "first_step", "phase_at", "trainable_at", "unreachable"]


@dataclass(frozen=True)
class Progress:
    """A point of a run.

    Attributes:
        epoch: Epochs completed.
        step: Optimizer steps done.
        length: Optimizer steps of the whole run, or None where it has no end or nobody asked.
        fired: For each phase (counted from 0) whose metric has fired, the optimizer step at which it did.
        epoch_length: Optimizer steps of an epoch, or None where nobody knows.
    """

    epoch: int
    step: int
    length: int | None = None
    fired: Mapping[int, int] = field(default_factory=dict)
    epoch_length: int | None = None


def phase_at(phases: Sequence[Planned], progress: Progress) -> int:
    """Return the index of the phase at this point: the last one whose start was reached, in the order written."""
    return max(index for index, phase in enumerate(phases) if index == 0 or _reached(phase, index, progress))


def first_step(phases: Sequence[Planned], index: int, progress: Progress) -> int | None:
    """Return the optimizer step at which a phase starts, as far as this point of the run tells; None if it does not."""
    steps = [progress.fired[index]] if index in progress.fired else []
    kind, value = phases[index].at or ("step", 0 if index == 0 else math.inf)
    scale = {"epoch": progress.epoch_length, "step": 1, "fraction": progress.length}[kind]
    if value == 0 or (scale is not None and value != math.inf):
        steps.append(math.ceil(value * (scale or 0)))
    return min(steps, default=None)


def trainable_at(phases: Sequence[Planned], progress: Progress) -> tuple[str, ...]:
    """Return what trains at this point: names of stages, or patterns on parameter names."""
    return phases[phase_at(phases, progress)].train


def _reached(phase: Planned, index: int, progress: Progress) -> bool:
    if progress.fired.get(index, math.inf) <= progress.step:
        return True
    if phase.at is None:
        return False
    kind, value = phase.at
    if kind == "epoch":
        return progress.epoch >= value
    if kind == "step":
        return progress.step >= value
    return value == 0 or (progress.length is not None and progress.step >= math.ceil(value * progress.length))


def unreachable(phases: Sequence[Planned], epochs: int | None, length: int | None) -> list[str]:
    """Say which phases a run of this length never enters, or passes over.

    Args:
        phases: The schedule.
        epochs: Epochs of the run, or None for no limit.
        length: Optimizer steps of the run, or None for no limit.

    Returns:
        One sentence for each such phase.
    """
    told = []
    starts = [_start(phase, epochs, length) for phase in phases]
    for index, (phase, start) in enumerate(zip(phases, starts, strict=True)):
        following = [later for later in starts[index + 1 :] if later is not None]
        if phase.at is not None and phase.at[0] == "fraction" and phase.at[1] > 0 and length is None:
            told.append(
                f"Phase {index + 1} starts at a fraction of a run that has no end: set max_epochs or max_steps."
            )
        elif start is not None and start >= 1 and phase.when is None:
            told.append(f"Phase {index + 1} is never reached: it starts at {_words(phase)}, and the run ends before.")
        elif start is not None and following and min(following) <= start:
            told.append(f"Phase {index + 1} is passed over: a later phase starts at the same point or before.")
    return told


def _start(phase: Planned, epochs: int | None, length: int | None) -> float | None:
    """The phase's start as a fraction of the run; None where only a metric starts it or the run has no end."""
    if phase.at is None:
        return None if phase.when is not None else 0.0
    kind, value = phase.at
    whole = {"epoch": epochs, "step": length, "fraction": 1}[kind]
    return 0.0 if value == 0 else None if not whole else value / whole


def _words(phase: Planned) -> str:
    kind, value = phase.at or ("step", 0)
    return f"{kind} {value:g}"
