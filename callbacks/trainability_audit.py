"""What trains, told at the start and at each change, and refused where it cannot be right."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info

from lit_transfer._selection import remember, stages_again
from lit_transfer.audit import StageAudit, audit, check_trainability, checksums, idle, some, table
from lit_transfer.callbacks._picture import log_picture, moment_of, thinned
from lit_transfer.callbacks._reducer import note_reducer, uncovered
from lit_transfer.callbacks._refusals import refuse_lost_schedule
from lit_transfer.schedule import Moment
from lit_transfer.stages import Stage

__all__ = ["TrainabilityAudit"]


class TrainabilityAudit(Callback):
    """Prints a table of the stages, logs their rates, and raises for training that cannot be meant.

    It looks in `on_train_batch_start` of the first batch (`on_train_start` of a callback that comes later may still
    freeze) and in each `on_before_optimizer_step`: by then every callback and module has had its say about what trains
    in this step, and nothing has moved yet. Under FSDP it looks there only, since at other times FSDP2 puts other
    parameters in place of those that the optimizer knows. It works with any way of freezing.

    At the end of the fit the loggers get a picture of what trained when and at which rate: CSVLogger a `schedule.png`
    beside its `metrics.csv`, TensorBoardLogger a figure; others get none.

    Attributes:
        moments: What trained, at each change and as often as the trainer logs; `lit_transfer.schedule.plot_timeline`
            draws it.
    """

    def __init__(self, *, check_ranks: bool = False) -> None:
        """Choose what is checked.

        Args:
            check_ranks: Under DDP, compare the parameters of all ranks, bit for bit by a checksum, at each change of
                what trains and at the end of the fit.
        """
        self.check_ranks = check_ranks
        self._stages: tuple[Stage, ...] = ()
        self._seen: frozenset[str] | None = None
        self.moments: list[Moment] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the stages while the module can be run without memory: before a strategy shards it."""
        if stage == "fit" and list(pl_module.parameters()):
            self._stages = remember(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what DDP's reducer covers."""
        note_reducer(trainer)
        self._stages, self._seen, self.moments = stages_again(pl_module, self._stages), None, []

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on without the schedule that the checkpoint's run had."""
        refuse_lost_schedule(trainer, checkpoint)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Check and tell what trains, before the first batch."""
        if self._seen is None and not isinstance(trainer.strategy, (FSDPStrategy, ModelParallelStrategy)):
            self._look(trainer, pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Check and tell where what trains is not what it was, and log the rates."""
        changed = self._look(trainer, pl_module)
        settings: Any = trainer
        every = settings.log_every_n_steps
        if changed or not self.moments or (every and trainer.global_step % every == 0):
            self._record(trainer, self._audit(trainer, pl_module), changed)

    def _look(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Check and tell if what trains has changed; returns whether it has."""
        trains = frozenset(name for name, p in pl_module.named_parameters() if p.requires_grad)
        if trains == self._seen:
            return False
        self._seen = trains
        self._check(trainer, pl_module)
        rows = table(self._audit(trainer, pl_module))
        still = idle(pl_module, trainer.optimizers, self._stages)
        told = f"\n{', '.join(still)} will not move at rate 0: freezing saves their gradients." if still else ""
        rank_zero_info(f"Trainability in epoch {trainer.current_epoch}, step {trainer.global_step}:\n{rows}{told}")
        return True

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_trainability(pl_module, trainer.optimizers)
        missed = uncovered(trainer)
        if missed:
            raise ValueError(
                f"{some(missed)} will train, but DDP's reducer was built without: the ranks would drift apart. Let "
                "FinetuningSchedule unfreeze, which rebuilds the reducer (pytorch-lightning#20340)."
            )
        self._compare_ranks(trainer, pl_module)

    def _audit(self, trainer: Trainer, pl_module: LightningModule) -> tuple[StageAudit, ...]:
        settings: Any = trainer  # Lightning does not annotate what its connectors set
        factors = next((c.factors(trainer) for c in settings.callbacks if hasattr(c, "factors")), None)
        return audit(pl_module, trainer.optimizers, stages=self._stages, factors=factors)

    def _record(self, trainer: Trainer, rows: tuple[StageAudit, ...], changed: bool) -> None:
        """Keep for the picture what trains, and log the rate of each stage: 0 where it is frozen."""
        phase = self.moments[-1].phase + changed if self.moments else 0
        moment = moment_of(trainer, rows, phase)
        self.moments.append(moment)
        self.moments = thinned(self.moments)
        settings: Any = trainer
        every = settings.log_every_n_steps
        if every and trainer.global_step % every == 0:
            for logger in trainer.loggers:
                rates = {f"lr/{row.stage}": moment.lr.get(row.stage, 0.0) for row in rows}
                logger.log_metrics(rates, step=trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the ranks a last time, and give the picture to the loggers."""
        self._compare_ranks(trainer, pl_module)
        log_picture(trainer, self.moments)

    def _compare_ranks(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.check_ranks or trainer.world_size == 1 or not isinstance(trainer.strategy, DDPStrategy):
            return
        sums = trainer.strategy.all_gather(checksums(pl_module))
        apart = torch.nonzero((sums != sums[0]).any(0)).flatten().tolist()
        if apart:
            names = [name for name, _ in pl_module.named_parameters()]
            raise RuntimeError(
                f"The ranks have drifted apart by step {trainer.global_step} in {some([names[i] for i in apart])}: "
                "their gradients were not reduced together."
            )
