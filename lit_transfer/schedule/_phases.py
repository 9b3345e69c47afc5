"""What a schedule is written in (`Phase`), and the checked form that everything else works with (`Planned`)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from typing_extensions import TypedDict

__all__ = ["At", "Phase", "Planned", "When", "plan_phases"]


class At(TypedDict, total=False):
    """When a phase starts: one of `epoch`, `step` (optimizer steps) and `fraction` (of the run's optimizer steps)."""

    epoch: int
    step: int
    fraction: float


class When(TypedDict, total=False):
    """A validation metric that starts a phase: `plateau` (no more progress), or `metric` with `above` or `below`.

    `mode` says which way a plateau's metric improves: "min" for names with "loss" or "error", else "max", if not given.
    `patience` is the number of validations without improvement by more than `min_delta` (1 if not given).
    """

    plateau: str
    mode: Literal["min", "max"]
    patience: int
    min_delta: float
    metric: str
    above: float
    below: float


class Phase(TypedDict, total=False):
    """One phase of a schedule: what trains, from when, and at which rate.

    `train`: stage names, `"all"`, `"backbone"`, dotted names or patterns; or `top`: the head and the last k stages.
    `at` and `when`: the phase starts at the earlier of the two; the first phase has neither.
    `lr`: the rate of the head (of the last stage, where no head trains), instead of the one of `param_groups`.
    `layer_decay`: factor from each stage to the one below, instead of the one of `param_groups`.
    `warmup`: optimizer steps over which the rates rise from 0 to their values, from the phase's start.
    """

    train: str | list[str]
    top: int
    at: At
    when: When
    lr: float
    layer_decay: float
    warmup: int


@dataclass(frozen=True)
class Planned:
    """A phase that was checked.

    Attributes:
        train: What trains: words for `lit_transfer.freezing`.
        at: The point at which it starts, ("epoch" | "step" | "fraction", value), or None.
        when: The metric that starts it, or None.
        lr: Rate of the head, or None.
        layer_decay: Factor from each stage to the one below, or None.
        warmup: Optimizer steps of warm-up.
    """

    train: tuple[str, ...]
    at: tuple[str, float] | None = None
    when: When | None = None
    lr: float | None = None
    layer_decay: float | None = None
    warmup: int = 0

    @property
    def sets_rates(self) -> bool:
        """Whether the phase asks for learning rates of its own."""
        return self.lr is not None or self.layer_decay is not None or self.warmup > 0


def plan_phases(phases: Sequence[Phase], stages: Sequence[str]) -> tuple[Planned, ...]:
    """Check phases and bring them into the form that the schedule works with.

    Args:
        phases: The phases in order; the first one starts with the run.
        stages: Names of the module's stages, from the stem to the head.

    Returns:
        One `Planned` for each phase.

    Raises:
        TypeError: A phase or a part of it is of the wrong type.
        ValueError: A key or a value that a phase does not have.
    """
    if not isinstance(phases, (list, tuple)) or not phases:
        raise TypeError(f"phases must be a list of phases or a preset, got {phases!r}.")
    planned = tuple(_plan(phase, number, stages) for number, phase in enumerate(phases, 1))
    if planned[0].when is not None or (planned[0].at or ("", 0))[1] != 0:
        raise ValueError(
            f"Phase 1 starts with the run: remove its `at` and `when`, or put a phase before it: {phases[0]}"
        )
    for number, phase in enumerate(planned[1:], 2):
        if phase.at is None and phase.when is None:
            raise ValueError(f"Phase {number} needs `at` or `when`: say when it starts, e.g. at: {{epoch: 3}}.")
    return planned


def _plan(phase: Phase, number: int, stages: Sequence[str]) -> Planned:
    where = f"Phase {number}"
    check_keys(phase, Phase.__annotations__, where)
    at = _plan_at(phase["at"], f"{where}, at") if "at" in phase else None
    when = _plan_when(phase["when"], f"{where}, when") if "when" in phase else None
    lr, decay, warmup = phase.get("lr"), phase.get("layer_decay"), phase.get("warmup") or 0
    if lr is not None:
        _number(lr, f"{where}, lr", low=0)
    if decay is not None and not 0 < _number(decay, f"{where}, layer_decay") <= 1:
        raise ValueError(f"{where}, layer_decay must be above 0 and at most 1, got {decay}.")
    _number(warmup, f"{where}, warmup", low=0, whole=True)
    return Planned(_plan_train(phase, where, stages), at, when, lr, decay, warmup)


def _plan_train(phase: Phase, where: str, stages: Sequence[str]) -> tuple[str, ...]:
    if ("train" in phase) == ("top" in phase):
        raise ValueError(f"{where} needs `train` (stages or patterns) or `top` (the last k stages), one of them.")
    if "top" in phase:
        backbone = [name for name in stages if name != "head"]
        top = int(_number(phase["top"], f"{where}, top", low=0, whole=True))
        if top > len(backbone):
            raise ValueError(f"{where}, top must be at most {len(backbone)}, the number of stages, got {top}.")
        words = [name for name in stages if name == "head" or name in backbone[len(backbone) - top :]]
    else:
        words = [phase["train"]] if isinstance(phase["train"], str) else list(phase["train"])
    if not words or not all(isinstance(word, str) and word for word in words):
        raise ValueError(f"{where} trains nothing: got {words}, expected names of stages or patterns.")
    return tuple(words)


def _plan_at(at: At, where: str) -> tuple[str, float]:
    check_keys(at, At.__annotations__, where)
    if len(at) != 1:
        raise ValueError(f"{where} needs one of epoch, step and fraction, got {dict(at)}.")
    ((kind, value),) = at.items()
    number = _number(value, f"{where}.{kind}", low=0, whole=kind != "fraction")
    if kind == "fraction" and number > 1:
        raise ValueError(f"{where}.fraction is a part of the run, from 0 to 1, got {number}.")
    return kind, number


def _plan_when(when: When, where: str) -> When:
    check_keys(when, When.__annotations__, where)
    limits = [key for key in ("above", "below") if key in when]
    slow = [key for key in ("mode", "patience", "min_delta") if key in when]
    if ("plateau" in when) == ("metric" in when):
        raise ValueError(
            f"{where} needs `plateau` or `metric`, the name of a logged validation metric; got {dict(when)}."
        )
    if "metric" in when and (len(limits) != 1 or slow):
        raise ValueError(f"{where} with `metric` needs `above` or `below` and nothing else; got {dict(when)}.")
    if "plateau" in when and limits:
        raise ValueError(f"{where} with `plateau` takes mode, patience and min_delta, not {limits[0]}.")
    if when.get("mode", "min") not in {"min", "max"}:
        raise ValueError(f"{where}.mode must be 'min' or 'max', got {when['mode']!r}.")
    for key in limits:
        _number(when[key], f"{where}.{key}")
    _number(when.get("patience", 1), f"{where}.patience", low=1, whole=True)
    _number(when.get("min_delta", 0.0), f"{where}.min_delta", low=0)
    return when


def check_keys(given: object, known: Iterable[str], where: str) -> None:
    """Raise where `given` is no mapping, or has a key that is not known: the nearest one is named."""
    if not isinstance(given, Mapping):
        raise TypeError(f"{where} must be a mapping with some of {', '.join(known)}, got {given!r}.")
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), list(known), n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{where} has no key {key!r}.{hint} Known: {', '.join(known)}.")


def _number(value: Any, where: str, *, low: float | None = None, whole: bool = False) -> float:
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or (low is not None and value < low):
        kind, least = "whole number" if whole else "number", "" if low is None else f" of at least {low}"
        raise ValueError(f"{where} must be a {kind}{least}, got {value!r}.")
    return value
