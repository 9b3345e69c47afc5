"""Phases: which stages train when, as a pure function of the training's progress."""

from lit_transfer.schedule._phases import At, Phase, Planned, When, plan_phases
from lit_transfer.schedule._picture import Stretch, phase_table, plot_timeline, stretches
from lit_transfer.schedule._presets import Phases, Preset, PresetName, check_schedule, plan_schedule
from lit_transfer.schedule._progress import Progress, first_step, phase_at, trainable_at, unreachable
from lit_transfer.schedule._rates import stage_factors, stage_rates, while_stepping
from lit_transfer.schedule._resume import STATE_KEY, refuse_without_schedule
from lit_transfer.schedule._running import RunningSchedule
from lit_transfer.schedule._timeline import Moment, Steps, timeline

__all__ = [
    "STATE_KEY",
    "At",
    "Moment",
    "Phase",
    "Phases",
    "Planned",
    "Preset",
    "PresetName",
    "Progress",
    "RunningSchedule",
    "Steps",
    "Stretch",
    "When",
    "check_schedule",
    "first_step",
    "phase_at",
    "phase_table",
    "plan_phases",
    "plan_schedule",
    "plot_timeline",
    "refuse_without_schedule",
    "stage_factors",
    "stage_rates",
    "stretches",
    "timeline",
    "trainable_at",
    "unreachable",
    "while_stepping",
]
