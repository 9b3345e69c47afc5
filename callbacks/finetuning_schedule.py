"""Which stages train when: the callback that keeps a module in step with its schedule."""

import contextlib
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_transfer._selection import select
from lit_transfer.audit import check_optimizers
from lit_transfer.callbacks._progress import progress_of, run_length, untold
from lit_transfer.callbacks._quiet import expect_frozen_modules, expect_nothing
from lit_transfer.callbacks._reducer import pristine_hook_state, rebuild_reducer
from lit_transfer.freezing import held_names, release_replaced, train_only
from lit_transfer.schedule import (
    Phase,
    Planned,
    Preset,
    PresetName,
    check_schedule,
    phase_at,
    plan_schedule,
)
from lit_transfer.stages import Stage, stages_of

__all__ = ["FinetuningSchedule"]


class FinetuningSchedule(Callback):
    """Trains the stages that its schedule names, and freezes all others, for any LightningModule.

    What trains is a pure function of epoch and step, computed afresh at each of these points: `setup` (before the
    module is wrapped and `configure_optimizers` runs), `on_fit_start` (a head may be built only in the module's
    `setup`, which Lightning calls after this one), `on_train_start` (the loops are restored by then, and resuming in
    the middle of an epoch skips `on_train_epoch_start`), `on_train_epoch_start`, and `on_train_batch_start` after an
    optimizer step. At none of them is a forward or a window of accumulation under way, so that DDP's reducer can be
    rebuilt; in `on_before_backward` and `on_before_zero_grad` the ranks would drift apart.

    Every parameter that trains at any time must be in an optimizer from the start; `param_groups` makes such groups.
    """

    def __init__(
        self,
        phases: PresetName | Preset | list[Phase] = "probe_then_finetune",
        *,
        train_norms: bool = False,
        update_statistics: bool = False,
    ) -> None:
        """Check the schedule.

        Args:
            phases: The name of a preset (`linear_probe`, `freeze_first_k`, `probe_then_finetune`, `gradual`, `full`,
                `from_scratch`), a preset with its arguments, or a list of phases.
            train_norms: Leave weight and bias of norm layers trainable in what is frozen; see `lit_transfer.freeze`.
            update_statistics: Let norm layers of what is frozen update their statistics.
        """
        check_schedule(phases)
        self.phases = phases
        self.options = {"train_norms": train_norms, "update_statistics": update_statistics}
        self._planned: tuple[Planned, ...] = ()
        self._stages: tuple[Stage, ...] = ()
        self._held: tuple[str, ...] = ()  # names of the parameters that were frozen in `setup`
        self._phase: int | None = None
        self._length: int | None = None
        self._hook_state: dict[str, Any] = {}
        self._filter: tuple[Any, ...] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Freeze what exists already; names that are missing are an error only in `on_fit_start`."""
        if stage != "fit" or not list(pl_module.parameters()):
            return
        self._hook_state = pristine_hook_state(trainer)
        stages = stages_of(pl_module)
        names = [s.name for s in stages]
        planned = plan_schedule(self.phases, names if "head" in names else [*names, "head"])
        words = planned[phase_at(planned, progress_of(trainer))].train
        train_only(pl_module, _existing(pl_module, words, stages), stages=stages, **self.options)
        self._held = held_names(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Resolve the whole schedule, check the optimizers, and freeze what was built after `setup`."""
        release_replaced(pl_module, self._held)
        self._stages, self._phase, self._length = stages_of(pl_module), None, None
        self._planned = plan_schedule(self.phases, [s.name for s in self._stages])
        trains = {name for phase in self._planned for name in select(pl_module, phase.train, stages=self._stages)}
        check_optimizers(pl_module, trainer.optimizers, [n for n, _ in pl_module.named_parameters() if n in trains])
        self._follow(trainer, pl_module)
        self._filter = expect_frozen_modules(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Follow the restored progress, and tell which phases the run's length leaves out."""
        expect_nothing(self._filter)
        self._length = run_length(trainer, self._planned)
        for told in untold(trainer, self._planned, self._length):
            rank_zero_warn(f"FinetuningSchedule: {told}")
        self._follow(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Enter the phase of this epoch, and freeze again what other code may have woken."""
        self._follow(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Enter the phase of this step; the step only moves where no window of accumulation is open."""
        if self._now(trainer) != self._phase:
            self._follow(trainer, pl_module)

    def _now(self, trainer: Trainer) -> int:
        return phase_at(self._planned, progress_of(trainer, self._length))

    def _follow(self, trainer: Trainer, pl_module: LightningModule) -> None:
        index = self._now(trainer)
        words = self._planned[index].train
        names = train_only(pl_module, words, stages=self._stages, **self.options)
        rebuild_reducer(trainer, self._hook_state)
        if index != self._phase:
            where = f"epoch {trainer.current_epoch}, step {trainer.global_step}"
            rank_zero_info(f"FinetuningSchedule: {where}: {', '.join(words)} train, {len(names)} parameter tensors.")
        self._phase = index


def _existing(module: LightningModule, words: Sequence[str], stages: Sequence[Stage]) -> list[str]:
    """The words that mean something before the module's own `setup` has run."""
    found = []
    for word in words:
        with contextlib.suppress(ValueError):
            select(module, word, stages=stages)
            found.append(word)
    return found
