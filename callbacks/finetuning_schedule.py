"""Which stages train when: the callback that keeps a module in step with its schedule."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.hooks import RemovableHandle

from lit_transfer.audit import check_optimizers
from lit_transfer.callbacks._progress import is_open_window, lengths, progress_of, tell_cut_short, untold
from lit_transfer.callbacks._quiet import expect_frozen_modules, expect_nothing
from lit_transfer.callbacks._reducer import pristine_hook_state, rebuild_reducer
from lit_transfer.callbacks._refusals import check_scratch
from lit_transfer.schedule import STATE_KEY, Phases, Progress, RunningSchedule, phase_at, while_stepping

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

    Attributes:
        phases: The schedule as it was given.
        train_norms: The option as it was given.
    """

    def __init__(
        self,
        phases: Phases = "probe_then_finetune",
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
        self.phases, self.train_norms = phases, train_norms
        self._run = RunningSchedule(phases, train_norms=train_norms, update_statistics=update_statistics)
        self._phase: int | None = None
        self._lengths: dict[str, int | None] = {}
        self._hook_state: dict[str, Any] = {}
        self._filter: tuple[Any, ...] | None = None
        self._handles: list[RemovableHandle] = []
        self._started = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Freeze what exists already; names that are missing are an error only in `on_fit_start`."""
        self._started = False
        if stage == "fit" and list(pl_module.parameters()):
            self._hook_state = pristine_hook_state(trainer)
            self._run.prepare(pl_module, progress_of(trainer))
            self._filter = expect_frozen_modules(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Resolve the whole schedule, check the optimizers, and freeze what was built after `setup`."""
        self._phase, self._lengths = None, {}
        trains = self._run.begin(pl_module)
        if self._run.is_from_scratch:
            check_scratch(trainer, pl_module)
        check_optimizers(pl_module, trainer.optimizers, trains)
        if never := self._run.never_train(trains):
            rank_zero_info(f"FinetuningSchedule: {', '.join(never)} stay frozen in every phase.")
        self._run.attach(trainer.optimizers)
        self._follow(trainer, pl_module)
        expect_nothing(self._filter)
        self._filter = expect_frozen_modules(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Follow the restored progress, and tell which phases the run's length leaves out."""
        self._started = True
        expect_nothing(self._filter)
        self._lengths = lengths(trainer, self._run.planned)
        for told in untold(trainer, self._run.planned, self._lengths["length"]):
            rank_zero_warn(f"FinetuningSchedule: {told}")
        self._follow(trainer, pl_module)
        for optimizer in trainer.optimizers if self._run.sets_rates else ():
            self._handles += while_stepping(optimizer, lambda: self.factors(trainer))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Enter the phase of this epoch, and freeze again what other code may have woken."""
        self._follow(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Enter the phase of this step; the step only moves where no window of accumulation is open."""
        if phase_at(self._run.planned, self._progress(trainer)) != self._phase:
            self._follow(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch the metric that the next phase waits for; the phase starts with the next whole step."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            step = trainer.global_step + is_open_window(trainer)
            # Rank 0 decides, since a metric that was logged without sync_dist differs from rank to rank.
            self._run.observe(trainer.strategy.broadcast(dict(trainer.callback_metrics)), self._progress(trainer), step)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the hooks off the optimizers; a fit that never came to train leaves the module as it found it."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        expect_nothing(self._filter)
        if stage == "fit" and not self._started:
            self._run.withdraw(pl_module)
        elif stage == "fit" and self._phase is not None:
            self._run.end(pl_module, self._phase)
            tell_cut_short(trainer, self._run.planned, self._phase)

    @property
    def state_key(self) -> str:
        """One name for this class and those derived from it, so that a checkpoint tells that it had a schedule."""
        return STATE_KEY

    def state_dict(self) -> dict[str, Any]:
        """Return what is not a function of the progress: the metrics that fired, and the one that is watched."""
        return {"fired": self._run.fired, "watched": self._run.watched}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the triggers of a checkpoint; an edited schedule keeps those that it still has."""
        self._run.fired, self._run.watched = list(state_dict["fired"]), state_dict["watched"]

    def factors(self, trainer: Trainer) -> dict[str, float] | None:
        """Return what multiplies the rate of each stage in the next step; None where the phase leaves rates alone."""
        return self._run.factors(self._progress(trainer))

    def _progress(self, trainer: Trainer) -> Progress:
        return progress_of(trainer, fired=self._run.fired_at(), **self._lengths)

    def _follow(self, trainer: Trainer, pl_module: LightningModule) -> None:
        index = phase_at(self._run.planned, self._progress(trainer))
        names = self._run.apply(pl_module, index)
        rebuild_reducer(trainer, self._hook_state)
        if index != self._phase:
            where = f"epoch {trainer.current_epoch}, step {trainer.global_step}"
            words = ", ".join(self._run.planned[index].train)
            rank_zero_info(f"FinetuningSchedule: {where}: {words} train, {len(names)} parameter tensors.")
        self._phase = index
