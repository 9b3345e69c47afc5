"""Numbers for each image: regression of one or several targets in their own units."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, Metric
from torchmetrics.functional import r2_score

from lit_transfer.heads import HeadName
from lit_transfer.modules._named_outputs import Answers, NamedOutputs
from lit_transfer.modules._told_by_data import listed, told, training_targets
from lit_transfer.modules.transfer_module import RunStage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LOSSES: dict[str, type[nn.Module]] = {"mse": nn.MSELoss, "mae": nn.L1Loss, "huber": nn.HuberLoss}


@dataclass(frozen=True)
class Estimate:
    """The answer for one image.

    Attributes:
        values: Name of each target -> its value, in the target's own unit.
    """

    values: dict[str, float]

    def columns(self) -> dict[str, Any]:
        """Give the columns of a table: one for each target."""
        return dict(self.values)


class ImageRegressor(NamedOutputs):
    """Estimate one or several numbers for each image.

    The head learns standardised targets, (target - mean) / standard deviation over the training data, so that each
    target counts alike and the rates need not know the units; answers and metrics are in the targets' own units. Mean
    and deviation are buffers and part of every checkpoint.

    Logged on validation and test data: `val_loss` (of standardised targets), `val_mae` and `val_r2` (means over the
    targets) and, with several targets, `val_mae_NAME` of each. R2 needs two images and is left out below that.

    Attributes:
        target_names: Names of the targets in the order of the outputs, or None if nobody told them.
        target_mean: Mean (num_targets,) of each target, in its unit.
        target_std: Standard deviation (num_targets,) of each target, in its unit.
    """

    # Not val_mae: over several targets that is a mean of different units.
    monitor: ClassVar[tuple[str, str]] = ("val_loss", "min")
    _thing, _things = "target", "targets"
    _told_as = ("target_names",)
    _made = (*NamedOutputs._made, "target_mean", "target_std")
    target_mean: Tensor
    target_std: Tensor

    def __init__(
        self,
        backbone: str | nn.Module = "resnet18",
        weights: str | None = "DEFAULT",
        *,
        num_targets: int | None = None,
        target_names: list[str] | None = None,
        target_mean: list[float] | None = None,
        target_std: list[float] | None = None,
        loss: Literal["mse", "mae", "huber"] = "mse",
        head: HeadName | nn.Module = "linear",
        dropout: float = 0.0,
        in_channels: int = 3,
        input_size: int | None = None,
        optimizer: OptimizerCallable = lambda groups: torch.optim.AdamW(groups, lr=3e-3, weight_decay=0.05),
        lr_scheduler: LRSchedulerCallable | None = None,
        backbone_lr_factor: float = 0.03,
        layer_decay: float | None = None,
        channels_last: bool = True,
        compile: bool = False,  # noqa: A002  # the word of torch and of Lightning's users
    ) -> None:
        """Build the backbone with its weights, and the head where the number of targets is known.

        Args:
            backbone: A name of `list_backbones`, `timm/NAME`, `hf/ORG/NAME`, or a module whose classifier is cut off.
            weights: `"DEFAULT"` for the pretrained ones, a weights name, a path or URL, or None for random ones.
            num_targets: Number of targets; None takes it from `target_names` or from the data.
            target_names: Names in the order of the outputs; None takes them from the data.
            target_mean: Mean of each target; None takes it from the training data. A head that another library trained
                on targets as they are goes with 0, and 1 for the next.
            target_std: Standard deviation of each target; None takes it from the training data.
            loss: Of standardised targets: `"mse"` for the mean, which R2 judges by; `"mae"` for the median, which
                outliers do not move; `"huber"` for the former below an error of one standard deviation, and the
                latter above.
            head: `"linear"`; `"mlp"`; `"cosine"` for scaled cosines; `"attention"` to pool the last feature map by
                learned weights; or a module from (N, num_features) to (N, num_targets), standardised.
            dropout: Probability with which a feature is dropped before the head's last layer.
            in_channels: Channels of the images; the first convolution is adapted.
            input_size: Side of the images in pixels; None for the size that the weights were made with.
            optimizer: Makes the optimizer from parameter groups; its `lr` is the head's.
            lr_scheduler: Makes the scheduler from the optimizer, stepped after each epoch; None for a linear warm-up
                and half a cosine over the run's own number of steps, stepped after each batch.
            backbone_lr_factor: The backbone's rate as a multiple of the head's; 0 leaves its weights as they are, but
                computes all gradients: freezing is cheaper.
            layer_decay: Multiplies the rate once more for every stage further from the head.
            channels_last: Keep images and convolutions in the memory layout in which convolutions are fastest on CPUs,
                and on GPUs with half precision.
            compile: Compile the backbone when a fit starts, which takes up to minutes and pays in long runs on a GPU;
                on a CPU it did not pay (docs/performance.md).

        Raises:
            ValueError: If the arguments about targets, or `head`, contradict each other, or `loss` is unknown.
        """
        if loss not in _LOSSES:
            raise ValueError(f"loss={loss!r} is unknown; known are {list(_LOSSES)}.")
        if (target_mean is None) != (target_std is None):
            raise ValueError("target_mean and target_std belong together: give both, or none.")
        self.target_names = target_names
        self._loss_name = loss
        self._given_scale = None if target_mean is None or target_std is None else (target_mean, target_std)
        self._scale_is_known = self._given_scale is not None
        if self._scale_is_known:  # else a head of another library's file would be read in the scale of other data
            self.optional_buffers = ("target_mean", "target_std")
        super().__init__(
            backbone,
            weights,
            num_outputs=self._agreed_number(num_targets, target_names),
            head=head,
            dropout=dropout,
            in_channels=in_channels,
            input_size=input_size,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            backbone_lr_factor=backbone_lr_factor,
            layer_decay=layer_decay,
            channels_last=channels_last,
            compile=compile,
        )

    @classmethod
    def _agreed_number(cls, number: int | None, names: list[str] | None) -> int | None:
        if "path" in (names or []):
            raise ValueError(
                "a target is named 'path', as is the column of the images in the answers of predict, which it would "
                "hide: rename it in the data or in target_names."
            )
        return super()._agreed_number(number, names)

    def _agree_with_data(self, number: int | None, names: list[str]) -> None:
        self._agreed_number(None, names or None)
        super()._agree_with_data(number, names)

    @property
    def num_targets(self) -> int | None:
        """Number of targets, or None before the data told it."""
        return self.num_outputs

    def configure_loss(self) -> nn.Module:
        """Make the loss of standardised targets that was asked for."""
        return _LOSSES[self._loss_name]()

    def configure_metrics(self) -> dict[str, Metric]:
        """The mean absolute error, in the targets' own units."""
        return {"mae": MeanAbsoluteError()}

    def configure_record(self) -> Metric:
        """All answers and targets."""
        return Answers()

    def _build(self) -> None:
        """Build what is missing, and the scale of the targets: what was given, else 0 and 1 until `setup`."""
        if not self._has("target_mean") and self.num_targets is not None:
            number = self.num_targets
            self._set_scale(*(self._given_scale or ([0.0] * number, [1.0] * number)))
        super()._build()

    def _set_scale(self, mean: Any, std: Any) -> None:
        scale = [torch.as_tensor(values, dtype=torch.float32).clone() for values in (mean, std)]
        for name, values in zip(("target_mean", "target_std"), scale, strict=True):
            if values.shape != (self.num_targets,):
                raise ValueError(f"{name} has {values.numel()} values for {self.num_targets} targets.")
            if not values.isfinite().all() or (name == "target_std" and not (values > 0).all()):
                raise ValueError(f"{name} must be finite, and target_std above 0; got {values.tolist()}.")
        for name, values in zip(("target_mean", "target_std"), scale, strict=True):
            self.register_buffer(name, values.to(self.device))

    def reset_head(  # type: ignore[override]  # a regressor counts targets, not outputs
        self,
        *,
        num_targets: int | None = None,
        target_names: list[str] | None = None,
        head: HeadName | nn.Module | None = None,
    ) -> None:
        """Put a fresh head on the backbone, which stays as it is; the targets' scale is taken from the next data.

        Args:
            num_targets: Number of the new targets; None takes it from `target_names`, or keeps it.
            target_names: Their names; None forgets the old ones.
            head: Name or module; None keeps the kind.

        Raises:
            RuntimeError: If optimizers exist that hold the old head's parameters.
            ValueError: If the number of names is not `num_targets`.
        """
        self._refuse_with_optimizers()
        self._given_scale, self._scale_is_known = None, False
        self._reset_head(num_targets, target_names, head)

    def setup(self, stage: str) -> None:
        """Take the targets and their scale from the data where they were not given.

        Raises:
            ValueError: If the data has other targets than this module, or does not tell what is asked of it.
        """
        super().setup(stage)
        if stage == "fit" and not self._scale_is_known:
            self._take_scale()
            self._scale_is_known = True

    def _take_scale(self) -> None:
        mean, std = told(self.trainer, "target_mean"), told(self.trainer, "target_std")
        targets = training_targets(self.trainer) if mean is None or std is None else None
        if targets is not None:
            mean, std = self._columns(targets, dtype=torch.float64).mean(0), targets.std(0, correction=0)
        if mean is None or std is None:
            rank_zero_warn(
                "The data does not tell mean and standard deviation of its targets (target_mean, target_std): they are "
                "learned as they are, in their own units. Give target_mean=[...] and target_std=[...]."
            )
            return
        std = torch.as_tensor(std, dtype=torch.float64)
        if still := [name for name, value in zip(self._names_or_numbers, std.tolist(), strict=False) if value == 0]:
            rank_zero_info(
                f"The same in all training images, and taken with a standard deviation of 1: {listed(still)}."
            )
        self._set_scale(mean, torch.where(std == 0, torch.ones_like(std), std))

    def forward(self, images: Tensor) -> Tensor:
        """Give the targets (N, num_targets) in their own units for images of shape (N, C, H, W)."""
        return self._in_units(super().forward(images))

    def _in_units(self, standardised: Tensor) -> Tensor:
        return standardised * self.target_std + self.target_mean

    def step(self, batch: Any, stage: RunStage) -> Tensor:
        """Compute the loss of one batch, of images and targets (N, num_targets) in their own units."""
        images, target = batch
        target = self._columns(target)
        # Not from the answer in units: where the mean is large beside the deviation, its digits would be lost.
        standardised = super().forward(images)
        self.update_metrics(stage, self._in_units(standardised), target)
        loss: Tensor = self.loss(standardised, (target - self.target_mean) / self.target_std)
        return loss

    def summarise(self, stage: RunStage, record: Tensor) -> None:
        """Log R2, and with several targets the error of each."""
        if record.shape[1] > 1:
            self._log_value("r2", stage, self._r2(record).mean().item())
        if len(errors := self._errors(record)) > 1:
            self._log_by_name("mae", stage, errors)

    def _errors(self, record: Tensor) -> dict[str, float]:
        answers, targets = record
        return dict(zip(self._names_or_numbers, (answers - targets).abs().mean(0).tolist(), strict=True))

    def _r2(self, record: Tensor) -> Tensor:
        """R2 of each target, of standardised values: torchmetrics takes small and uncentred ones for constant."""
        answers, targets = (record - self.target_mean.cpu()) / self.target_std.cpu()
        return r2_score(answers, targets, multioutput="raw_values").reshape(-1)

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Measure answers (N, num_targets) in their own units; R2 is the mean over the targets."""
        targets = self._columns(targets)
        mean, std = targets.mean(0), targets.std(0, correction=0)
        std = torch.where(std == 0, torch.ones_like(std), std)
        # of standardised values: see _r2
        each = r2_score((outputs - mean) / std, (targets - mean) / std, multioutput="raw_values")
        return {**super().measure(outputs, targets), "r2": each.mean().item()}

    def figures(self, stage: RunStage) -> dict[str, "Figure"]:
        """Draw predicted over true values of a stage that ran."""
        from lit_transfer.modules._pictures import plot_scatter  # matplotlib is slow to import

        if stage not in self.records:
            return {}
        answers, targets = record = self.records[stage]
        titles = [f"{name}\nMAE {error:.3g}" for name, error in self._errors(record).items()]
        if len(answers) > 1:
            titles = [f"{title}, R2 {r2:.3f}" for title, r2 in zip(titles, self._r2(record).tolist(), strict=True)]
        return {"scatter": plot_scatter(answers, targets, titles)}

    def describe_answer(self, output: Tensor) -> Estimate:
        """Name the values of one row (num_targets,)."""
        return Estimate(dict(zip(self._names_or_numbers, output.tolist(), strict=True)))

    def _arguments_now(self) -> dict[str, Any]:
        known = self._scale_is_known and self._has("target_mean")
        scale = {name: getattr(self, name).tolist() if known else None for name in ("target_mean", "target_std")}
        return {**super()._arguments_now(), **scale}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over targets and scale.

        Raises:
            ValueError: If the checkpoint has other targets than this module has by now.
        """
        super().on_load_checkpoint(checkpoint)
        self._scale_is_known = True
