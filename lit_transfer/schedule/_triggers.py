"""Metrics that start a phase: what a validation's value means, and which phase a trigger that fired belongs to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from typing_extensions import TypedDict

from lit_transfer.schedule._phases import Planned, When

__all__ = ["Fired", "Watched", "fired_steps", "observe", "value_of"]


class Fired(TypedDict):
    """A trigger that fired, and the optimizer step from which its phase counts."""

    when: When
    step: int


class Watched(TypedDict):
    """How far a plateau is: the best value so far, and the validations since without a better one."""

    when: When
    best: float | None
    bad: int


def observe(watched: Watched, value: float) -> tuple[bool, Watched]:
    """Take in one validation's value.

    Args:
        watched: What is known of the metric so far.
        value: The metric's new value.

    Returns:
        Whether the phase starts, and what is known now. A value that is not a number is never better.
    """
    when = watched["when"]
    if "metric" in when:
        return ("above" in when and value > when["above"]) or ("below" in when and value < when["below"]), watched
    best, sign = watched["best"], -1.0 if _mode(when) == "min" else 1.0
    better = not math.isnan(value) and (best is None or sign * (value - best) > when.get("min_delta", 0.0))
    now: Watched = {"when": when, "best": value if better else best, "bad": 0 if better else watched["bad"] + 1}
    return now["bad"] >= when.get("patience", 1), now


def _mode(when: When) -> str:
    falls = any(word in when["plateau"].lower() for word in ("loss", "error"))
    return when.get("mode", "min" if falls else "max")


def value_of(when: When, metrics: Mapping[str, Any]) -> float:
    """Return the metric that `when` waits for.

    Raises:
        ValueError: It was not logged; the names that were are given.
    """
    name = when.get("plateau") or when.get("metric") or ""
    if name not in metrics:
        known = ", ".join(sorted(metrics)) or "none"
        raise ValueError(f"A phase waits for the metric {name!r}, which no validation has logged. Logged: {known}.")
    return float(metrics[name])


def fired_steps(phases: Sequence[Planned], fired: Iterable[Fired]) -> dict[int, int]:
    """Return the step of each phase that a trigger started, by index; an edited schedule keeps those that it has."""
    left = list(fired)
    steps = {}
    for index, phase in enumerate(phases):
        found = next((entry for entry in left if phase.when is not None and entry["when"] == phase.when), None)
        if found is not None:
            left.remove(found)
            steps[index] = found["step"]
    return steps
