"""Phases: which stages train when, as a pure function of the training's progress."""

from lit_transfer.schedule._phases import At, Phase, Planned, When, plan_phases
from lit_transfer.schedule._presets import Preset, PresetName, check_schedule, plan_schedule
from lit_transfer.schedule._progress import Progress, phase_at, trainable_at, unreachable

__all__ = [
    "At",
    "Phase",
    "Planned",
    "Preset",
    "PresetName",
    "Progress",
    "When",
    "check_schedule",
    "phase_at",
    "plan_phases",
    "plan_schedule",
    "trainable_at",
    "unreachable",
]
