"""Schedules by name: each preset is a function from the module's stages and its own arguments to phases."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from typing_extensions import TypedDict

from lit_transfer.schedule._phases import At, Phase, Planned, check_keys, plan_phases

__all__ = ["Phases", "Preset", "PresetName", "check_schedule", "plan_schedule"]

PresetName = Literal["linear_probe", "freeze_first_k", "probe_then_finetune", "gradual", "full", "from_scratch"]


class Preset(TypedDict, total=False):
    """A preset with its arguments, e.g. `{preset: freeze_first_k, k: 2}`; which ones each takes is in its docstring."""

    preset: PresetName
    k: int
    at: At
    every: At
    lr: float
    layer_decay: float
    warmup: int


# What a schedule may be written as: a preset by name or with its arguments, or phases.
Phases: TypeAlias = PresetName | Preset | list[Phase]


def linear_probe(stages: Sequence[str]) -> list[Phase]:
    """Only the head trains, for the whole run."""
    return [{"train": ["head"]}]


def freeze_first_k(stages: Sequence[str], *, k: int) -> list[Phase]:
    """The first k stages, the stem counted, stay frozen for the whole run; everything after them trains."""
    backbone = [name for name in stages if name != "head"]
    if isinstance(k, bool) or not isinstance(k, int) or not 0 <= k <= len(backbone):
        raise ValueError(
            f"Preset 'freeze_first_k': k must be from 0 to {len(backbone)}, the number of stages, got {k!r}."
        )
    return [{"top": len(backbone) - k}]


def probe_then_finetune(
    stages: Sequence[str],
    *,
    at: At | None = None,
    lr: float | None = None,
    layer_decay: float | None = None,
    warmup: int = 0,
) -> list[Phase]:
    """The head alone until `at` (30 % of the run), then everything (Kumar et al., LP-FT, arXiv:2202.10054)."""
    return [{"train": ["head"]}, _rated({"train": "all", "at": at or {"fraction": 0.3}}, lr, layer_decay, warmup)]


def gradual(
    stages: Sequence[str], *, every: At | None = None, layer_decay: float | None = None, warmup: int = 0
) -> list[Phase]:
    """The head, then one stage more at a time from the top down (Howard and Ruder, ULMFiT, arXiv:1801.06146).

    `every` is the time from one stage to the next; by default the run is divided into equal parts.
    """
    backbone = [name for name in stages if name != "head"]
    if every is not None:
        check_keys(every, At.__annotations__, "Preset 'gradual', every")
        if len(every) != 1:
            raise ValueError(f"Preset 'gradual', every needs one of epoch, step and fraction, got {dict(every)}.")
    kind, width = next(iter((every or {"fraction": 1 / (len(backbone) + 1)}).items()))
    phases: list[Phase] = [{"top": 0}]
    for k in range(1, len(backbone) + 1):
        at: Any = {kind: k * width}  # type: ignore[operator]  # the values of At are numbers
        phases.append(_rated({"top": k, "at": at}, None, layer_decay, warmup))
    return phases


def full(
    stages: Sequence[str], *, lr: float | None = None, layer_decay: float | None = None, warmup: int = 0
) -> list[Phase]:
    """Everything trains from the first step."""
    return [_rated({"train": "all"}, lr, layer_decay, warmup)]


def from_scratch(stages: Sequence[str]) -> list[Phase]:
    """Everything trains from the first step, and the weights are random: build the module with `weights=None`.

    A backbone that was given weights is refused, rather than made random: what the module's own code does at its
    start cannot be done again from outside, and weights that were trained must not vanish in a second fit.
    """
    return [{"train": "all"}]


_PRESETS: dict[str, Callable[..., list[Phase]]] = {
    preset.__name__: preset
    for preset in (linear_probe, freeze_first_k, probe_then_finetune, gradual, full, from_scratch)
}


def check_schedule(phases: PresetName | Preset | Sequence[Phase]) -> None:
    """Raise for what is wrong with a schedule whatever the module: names, keys, missing arguments."""
    if isinstance(phases, (str, Mapping)):
        k = phases.get("k") if isinstance(phases, Mapping) else None
        plan_schedule(phases, [*(f"stage{n}" for n in range(k if isinstance(k, int) else 1)), "head"])
    else:
        plan_phases([{**phase, "top": 0} if "top" in phase else phase for phase in phases], ("head",))


def plan_schedule(phases: PresetName | Preset | Sequence[Phase], stages: Sequence[str]) -> tuple[Planned, ...]:
    """Bring phases or a preset into the form that the schedule works with.

    Args:
        phases: The name of a preset, a preset with its arguments, or a list of phases.
        stages: Names of the module's stages, from the stem to the head.

    Returns:
        One `Planned` for each phase.

    Raises:
        TypeError: A part of it is of the wrong type.
        ValueError: An unknown preset, key or value; the nearest name is given.
    """
    if isinstance(phases, (str, Mapping)):
        preset, arguments = _preset(phases)
        if "head" not in stages:
            raise ValueError(f"Presets need a head, and the module has the stages {', '.join(stages)}: list phases.")
        phases = preset(stages, **arguments)
    return plan_phases(phases, stages)


def _preset(given: str | Mapping[str, Any]) -> tuple[Callable[..., list[Phase]], dict[str, Any]]:
    arguments: dict[str, Any] = {"preset": given} if isinstance(given, str) else dict(given)
    name = arguments.pop("preset", None)
    if name not in _PRESETS:
        near = difflib.get_close_matches(str(name), _PRESETS, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"There is no preset {name!r}.{hint} Presets: {', '.join(_PRESETS)}.")
    takes = {key: p for key, p in inspect.signature(_PRESETS[name]).parameters.items() if key != "stages"}
    check_keys(arguments, [*takes], f"Preset {name!r}")
    missing = [key for key, p in takes.items() if p.default is inspect.Parameter.empty and key not in arguments]
    if missing:
        raise ValueError(f"Preset {name!r} needs {missing[0]}: {{preset: {name}, {missing[0]}: ...}}.")
    return _PRESETS[name], arguments


def _rated(phase: Phase, lr: float | None, layer_decay: float | None, warmup: int) -> Phase:
    if lr is not None:
        phase["lr"] = lr
    if layer_decay is not None:
        phase["layer_decay"] = layer_decay
    if warmup:
        phase["warmup"] = warmup
    return phase
