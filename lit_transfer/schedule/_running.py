"""A schedule at work on one module: resolved, followed, and saved; it knows no trainer."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lit_transfer._selection import remember, select, stages_again
from lit_transfer.freezing import held_names, release_replaced, train_only, unfreeze
from lit_transfer.schedule._phases import Phase, Planned
from lit_transfer.schedule._presets import Preset, PresetName, check_schedule, plan_schedule
from lit_transfer.schedule._progress import Progress, first_step, phase_at
from lit_transfer.schedule._rates import check_groups, stage_factors, stage_rates
from lit_transfer.schedule._triggers import Fired, Watched, fired_steps, observe, value_of
from lit_transfer.stages import Stage

__all__ = ["RunningSchedule"]


class RunningSchedule:
    """Phases, the module's stages, and the one thing that is not a function of the progress: metrics that fired.

    Attributes:
        planned: The phases as they were checked against the module; empty before `begin`.
        stages: The module's stages.
        fired: The triggers that fired, in order.
        watched: The metric that is waited for, or None.
    """

    def __init__(
        self,
        phases: PresetName | Preset | Sequence[Phase],
        *,
        train_norms: bool = False,
        update_statistics: bool = False,
    ) -> None:
        check_schedule(phases)
        self.phases = phases
        self.options = {"train_norms": train_norms, "update_statistics": update_statistics}
        self.planned: tuple[Planned, ...] = ()
        self.stages: tuple[Stage, ...] = ()
        self.fired: list[Fired] = []
        self.watched: Watched | None = None
        self._held: tuple[str, ...] = ()
        self._found: tuple[str, ...] = ()
        self._rates: dict[str, float] = {}

    def prepare(self, module: nn.Module, progress: Progress) -> None:
        """Freeze what exists before the module is complete; words that mean nothing yet are passed over."""
        release_replaced(module, self._held)  # after a fit that was interrupted there was no `end`
        stages = self.stages = remember(module)
        names = [stage.name for stage in stages]
        planned = plan_schedule(self.phases, names if "head" in names else [*names, "head"])
        words = []
        for word in planned[phase_at(planned, progress)].train:
            with contextlib.suppress(ValueError):
                select(module, word, stages=stages)
                words.append(word)
        self._found = held_names(module)
        train_only(module, words, stages=stages, **self.options)
        self._held = held_names(module)

    def withdraw(self, module: nn.Module) -> None:
        """Undo `prepare` where no training came of it, as when a learning rate finder ends the fit."""
        taken = set(held_names(module)) - set(self._found)
        if taken:
            unfreeze(module, taken)

    def begin(self, module: nn.Module) -> tuple[str, ...]:
        """Resolve the schedule against the complete module.

        Returns:
            Names of all parameters that train in any phase.

        Raises:
            ValueError: A word matches nothing, or a phase does not fit the module.
        """
        release_replaced(module, self._held)
        self.stages = stages_again(module, self.stages)
        self.planned = plan_schedule(self.phases, [stage.name for stage in self.stages])
        if self.is_from_scratch:
            _refuse_weights(module)
        trains = {name for phase in self.planned for name in select(module, phase.train, stages=self.stages)}
        return tuple(name for name, _ in module.named_parameters() if name in trains)

    def never_train(self, trains: Sequence[str]) -> list[str]:
        """Return the stages of which no parameter is among those that train at any time, as `begin` returned them."""
        return [stage.name for stage in self.stages if not set(stage.parameters) & set(trains)]

    def attach(self, optimizers: Sequence[Optimizer]) -> None:
        """Learn the stages' rates.

        Raises:
            ValueError: A phase sets rates, and the optimizers' groups were not made by `param_groups`.
        """
        check_groups(self.planned, optimizers)
        self._rates = stage_rates(optimizers, [stage.name for stage in self.stages])
        for phase in self.planned:
            if phase.sets_rates:
                stage_factors(self._rates, phase)

    @property
    def is_from_scratch(self) -> bool:
        """Whether the preset `from_scratch` was asked for."""
        return self.phases in ("from_scratch", {"preset": "from_scratch"})

    @property
    def sets_rates(self) -> bool:
        """Whether any phase asks for learning rates of its own."""
        return any(phase.sets_rates for phase in self.planned)

    def fired_at(self) -> dict[int, int]:
        """The optimizer step of each phase that a metric started."""
        return fired_steps(self.planned, self.fired)

    def apply(self, module: nn.Module, index: int) -> tuple[str, ...]:
        """Let the phase's parameters train and freeze all others; returns the names of what trains."""
        names = train_only(module, self.planned[index].train, stages=self.stages, **self.options)
        self._held = held_names(module)
        return names

    def end(self, module: nn.Module, index: int) -> None:
        """Freeze again what was replaced when the fit was over, as Lightning does with SyncBatchNorm."""
        if set(self._held) - set(held_names(module)):
            release_replaced(module, self._held)
            self.apply(module, index)

    def factors(self, progress: Progress) -> dict[str, float] | None:
        """Return the factor of each stage's rate at this point, or None where the phase leaves the rates alone."""
        index = phase_at(self.planned, progress)
        phase = self.planned[index]
        if not phase.sets_rates:
            return None
        start = first_step(self.planned, index, progress)
        if phase.warmup and start is None:
            raise ValueError(
                f"Phase {index + 1} has a warmup and starts at an epoch, and the loader does not tell how many steps "
                "an epoch has: start the phase at a step."
            )
        done = progress.step - (start or 0) + 1
        return stage_factors(self._rates, phase, min(1.0, done / phase.warmup) if phase.warmup else 1.0)

    def observe(self, metrics: Mapping[str, Any], progress: Progress, step: int) -> bool:
        """Take in a validation's metrics; returns whether the next phase starts at `step`.

        Raises:
            ValueError: The metric that is waited for was not logged.
        """
        following = phase_at(self.planned, progress) + 1
        when = self.planned[following].when if following < len(self.planned) else None
        if when is None or following in progress.fired:
            return False
        if self.watched is None or self.watched["when"] != when:
            self.watched = {"when": when, "best": None, "bad": 0}
        fires, self.watched = observe(self.watched, value_of(when, metrics))
        if fires:
            self.fired.append({"when": when, "step": step})
            self.watched = None
        return fires


def _refuse_weights(module: nn.Module) -> None:
    """Raise where a backbone in the module, under whatever name, says which weights it was given."""
    for name, part in module.named_modules():
        weights = getattr(part, "weights", None)
        if isinstance(weights, str):
            raise ValueError(  # noqa: TRY004  # the type is as it should be
                f"Preset 'from_scratch' trains random weights, and {name or 'the module'} has {weights!r}: build it "
                "with weights=None, or use the preset 'full' to train from these."
            )
