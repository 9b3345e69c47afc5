"""Whether each stage learns too fast or too slowly: the callback that logs norms and update ratios by stage."""

from typing import Any

from lightning.fabric.plugins.precision.amp import _optimizer_handles_unscaling
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch.optim import Optimizer

from lit_transfer._selection import remember, stages_again
from lit_transfer.callbacks._picture import log_figure
from lit_transfer.stage_norms import StageNorm, StepMeasure, columns, plot_norms
from lit_transfer.stages import Stage

__all__ = ["StageNorms"]

_MOST_DRAWN = 2000  # measurements that are kept for the picture


class StageNorms(Callback):
    """Logs `grad_norm/STAGE`, `weight_norm/STAGE` and `update_ratio/STAGE` (‖Δw‖ / ‖w‖) every so many steps.

    Gradients are those of the whole window of accumulation, of all processes, unscaled, and before clipping: that is
    how `on_before_optimizer_step` finds them, and the weights as they were. What moved is known in
    `on_train_batch_end`, after clipping and all else that the optimizer makes of a gradient, and before a validation
    may exchange the weights. A stage without a gradient in the step, such as a frozen one, is left out. The steps in
    between cost a comparison of two numbers; a measured one keeps a copy of what trains while the optimizer steps.

    At the end of the fit the loggers get a picture: CSVLogger a `norms.png` beside its `metrics.csv`, TensorBoardLogger
    a figure.

    Attributes:
        measured: Optimizer step, counted from 0 -> stage -> its norms.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        """Choose how often to measure.

        Args:
            every_n_steps: Optimizer steps from one measurement to the next; the first step is measured.

        Raises:
            ValueError: If it is below 1.
        """
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be a whole number of at least 1, got {every_n_steps}.")
        self.every_n_steps = every_n_steps
        self.measured: dict[int, dict[str, StageNorm]] = {}
        self._stages: tuple[Stage, ...] = ()
        self._measure = StepMeasure()
        self._due: int | None = None
        self._next = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the stages while the module is as it was written.

        Raises:
            TypeError: The strategy divides parameters among processes, each of which would measure its own part.
        """
        if stage != "fit":
            return
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            raise TypeError(
                f"StageNorms works on one device and with strategy='ddp'; got {type(trainer.strategy).__name__}."
            )
        if list(pl_module.parameters()):
            self._stages = remember(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the stages again: a head may be built only in the module's `setup`."""
        self._stages, self._measure, self.measured = stages_again(pl_module, self._stages), StepMeasure(), {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the first step, and where a run is resumed with the next one that is due."""
        self._next = -(-trainer.global_step // self.every_n_steps) * self.every_n_steps

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Decide for the whole batch: several optimizers may step in it, each of which counts."""
        due = trainer.global_step >= self._next and trainer.is_global_zero
        self._due = trainer.global_step if due else None

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Look at the gradients, and keep the weights."""
        if self._due is not None:
            self._measure.begin(optimizer, _scale(trainer, optimizer))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """See how far the weights have moved, and log it; a batch amid a window of accumulation has no step."""
        if self._due is None or not (norms := self._measure.end(pl_module, self._stages)):
            return
        self._next = (self._due // self.every_n_steps + 1) * self.every_n_steps
        self.measured[self._due] = norms
        if len(self.measured) > _MOST_DRAWN:
            self.measured = dict(list(self.measured.items())[::2])
        for logger in trainer.loggers:
            logger.log_metrics(columns(norms), step=self._due)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the picture to the loggers."""
        if self.measured:
            log_figure(trainer, "norms", lambda: plot_norms(self.measured))


def _scale(trainer: Trainer, optimizer: Optimizer) -> float:
    """What AMP has multiplied the gradients with and not yet undone: a fused optimizer does so in its own step."""
    plugin = trainer.precision_plugin
    scaler = plugin.scaler if isinstance(plugin, MixedPrecision) else None
    return scaler.get_scale() if scaler is not None and _optimizer_handles_unscaling(optimizer) else 1.0
