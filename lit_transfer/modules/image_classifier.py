"""One label for each image: binary and multiclass classification."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)

from lit_transfer._entry import ENTRY
from lit_transfer.calibration import CalibrationError
from lit_transfer.heads import HeadName, set_bias_from_counts
from lit_transfer.modules._losses import ClassLoss, ClassLossName, check_focal
from lit_transfer.modules._mixing import Mixing
from lit_transfer.modules._named_outputs import NamedOutputs
from lit_transfer.modules._told_by_data import told
from lit_transfer.modules.transfer_module import RunStage

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Prediction:
    """The answer for one image.

    Attributes:
        label: Name of the most probable class.
        probability: Its probability.
        probabilities: Name of each class -> its probability.
    """

    label: str
    probability: float
    probabilities: dict[str, float]

    def columns(self) -> dict[str, Any]:
        """Give the columns of a table: one for each class beside the label."""
        shares = {f"p({name})": share for name, share in self.probabilities.items()}
        return {"label": self.label, "probability": self.probability, **shares}


class ImageClassifier(NamedOutputs):
    """Classify images into two or more classes, each image into exactly one.

    Logged on validation and test data: `val_loss`, `val_acc` (share of right answers), `val_top5` (with more than
    five classes), `val_f1` and `val_auroc` (means over the classes), `val_ece` (the expected calibration error, over 15
    bins); the confusion matrix is kept as `confusion["val"]`, rows being the true classes. Two classes are two outputs
    under a softmax.

    Attributes:
        class_names: Names of the classes in the order of the outputs, or None if nobody told them.
        temperature: What the logits are divided by before the softmax of `predict_step`, a scalar buffer: 1 until
            `lit-transfer calibrate` has fitted it. It is part of every checkpoint, and no part of the weights.
    """

    monitor: ClassVar[tuple[str, str]] = ("val_acc", "max")
    _thing, _things, _fewest = "class", "classes", 2
    _told_as = ("class_names", "classes")
    optional_buffers = ("loss.weight",)
    temperature: Tensor

    def __init__(
        self,
        backbone: str | nn.Module = "resnet18",
        weights: str | None = "DEFAULT",
        *,
        num_classes: int | None = None,
        class_names: list[str] | None = None,
        head: HeadName | nn.Module = "linear",
        dropout: float = 0.0,
        in_channels: int = 3,
        input_size: int | None = None,
        loss: ClassLossName = "cross_entropy",
        focal_gamma: float = 2.0,
        class_weights: list[float] | Literal["balanced"] | None = None,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        init_bias: bool = True,
        optimizer: OptimizerCallable = lambda groups: torch.optim.AdamW(groups, lr=3e-3, weight_decay=0.05),
        lr_scheduler: LRSchedulerCallable | None = None,
        backbone_lr_factor: float = 0.03,
        layer_decay: float | None = None,
        channels_last: bool = True,
        compile: bool = False,  # noqa: A002  # the word of torch and of Lightning's users
    ) -> None:
        """Build the backbone with its weights, and the head where the number of classes is known.

        Args:
            backbone: A name of `list_backbones`, `timm/NAME`, `hf/ORG/NAME`, or a module whose classifier is cut off.
            weights: `"DEFAULT"` for the pretrained ones, a weights name, a path or URL, or None for random ones.
            num_classes: Number of classes; None takes it from `class_names` or from the data.
            class_names: Names in the order of the outputs; None takes them from the data.
            head: `"linear"`; `"mlp"`; `"cosine"` for scaled cosines; `"attention"` to pool the last feature map by
                learned weights; or a module from (N, num_features) to (N, num_classes).
            dropout: Probability with which a feature is dropped before the head's last layer.
            in_channels: Channels of the images; the first convolution is adapted.
            input_size: Side of the images in pixels; None for the size that the weights were made with.
            loss: `"cross_entropy"`, or `"focal"` for one in which images that are right already count less.
            focal_gamma: How much less: they are multiplied by (1 - p) ** focal_gamma, p being the right class's
                probability.
            class_weights: A weight for each class in the loss, or `"balanced"` for the inverse of its frequency.
            label_smoothing: Share of the target's probability that is spread over all classes.
            mixup: Mix the images of each training batch in pairs, by shares drawn from Beta(mixup, mixup); 0 for none,
                0.2 is usual. Validation and test are as they are.
            cutmix: Put a rectangle of each training image into another, its area drawn likewise; 0 for none, 1 is
                usual. With both, each batch draws one of the two.
            init_bias: Start the head's bias at the logarithms of the class frequencies, if the data tells them, no
                class weights are given and `data.sampling` is not balanced.
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
            ValueError: If `num_classes`, `class_names`, `class_weights` or `head` contradict each other, or `loss`,
                `focal_gamma`, `mixup` or `cutmix` is out of its range.
        """
        self.class_names = class_names
        self._focal_gamma = check_focal(loss, get_args(ClassLossName), focal_gamma)
        self._mixing = Mixing(mixup, cutmix)
        self._class_weights = class_weights
        self._class_counts: list[int] | None = None
        self._label_smoothing = label_smoothing
        self._init_bias = init_bias and class_weights is None
        super().__init__(
            backbone,
            weights,
            num_outputs=self._agreed_number(num_classes, class_names),
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
        # Not persistent: a state dict with a tensor that is no weight would fit nothing else.
        self.register_buffer("temperature", torch.ones(()), persistent=False)

    @property
    def confusion(self) -> dict[str, Tensor]:
        """The confusion matrix (num_classes, num_classes) of each stage that ran last, as counts."""
        return self.records

    @property
    def num_classes(self) -> int | None:
        """Number of classes, or None before the data told it."""
        return self.num_outputs

    def configure_loss(self) -> nn.Module:
        """Cross entropy or focal loss, with the class weights and the label smoothing that were asked for."""
        return ClassLoss(
            weight=self._weights_of_classes(), label_smoothing=self._label_smoothing, focal_gamma=self._focal_gamma
        )

    def _weights_of_classes(self) -> Tensor | None:
        if self._class_weights is None:
            return None
        if self._class_weights == "balanced":
            # Without the data's counts (a checkpoint that is only evaluated) the buffer is filled from the file.
            counts = torch.tensor(self._class_counts or [1] * (self.num_classes or 1), dtype=torch.float32)
            return counts.sum() / (len(counts) * counts.clamp(min=1))
        if len(self._class_weights) != self.num_classes:
            raise ValueError(f"class_weights has {len(self._class_weights)} values for {self.num_classes} classes.")
        return torch.tensor(self._class_weights, dtype=torch.float32)

    def configure_metrics(self) -> dict[str, Metric]:
        """Accuracy, also among the first five, F1 and AUROC as means over the classes, and the calibration error."""
        classes = self.num_classes or 2
        # Their checks of labels wait for the device at each step; the loss refuses the same labels.
        metrics: dict[str, Metric] = {
            "acc": MulticlassAccuracy(classes, average="micro", validate_args=False),
            "f1": MulticlassF1Score(classes, average="macro", validate_args=False),
            "auroc": MulticlassAUROC(classes, average="macro", validate_args=False),
            "ece": CalibrationError(classes, validate_args=False),
        }
        if classes > 5:
            metrics["top5"] = MulticlassAccuracy(classes, average="micro", top_k=5, validate_args=False)
        return metrics

    def update_metrics(self, stage: RunStage, answer: Tensor, target: Tensor) -> None:
        """Update the metrics of a stage with the logits of one batch, at the temperature at which it is answered."""
        super().update_metrics(stage, answer / self.temperature, target)

    def configure_record(self) -> Metric:
        """The confusion matrix."""
        return MulticlassConfusionMatrix(self.num_classes or 2, validate_args=False)

    def figures(self, stage: RunStage) -> dict[str, "Figure"]:
        """Draw the confusion matrix of a stage that ran."""
        from lit_transfer.modules._pictures import plot_confusion  # matplotlib is slow to import

        return {"confusion": plot_confusion(self.records[stage], self.class_names)} if stage in self.records else {}

    def reset_head(  # type: ignore[override]  # a classifier counts classes, not outputs
        self,
        *,
        num_classes: int | None = None,
        class_names: list[str] | None = None,
        head: HeadName | nn.Module | None = None,
    ) -> None:
        """Put a fresh head on the backbone, which stays as it is.

        Args:
            num_classes: Number of the new classes; None takes it from `class_names`, or keeps it.
            class_names: Their names; None forgets the old ones.
            head: Name or module; None keeps the kind.

        Raises:
            RuntimeError: If optimizers exist that hold the old head's parameters.
            ValueError: If the number of names is not `num_classes`.
        """
        self._reset_head(num_classes, class_names, head)
        self.temperature.fill_(1)

    def setup(self, stage: str) -> None:
        """Take the classes from the data where they were not given, and refuse data that contradicts.

        Raises:
            ValueError: If the data has other classes than this module, or does not tell what is asked of it.
        """
        self._class_counts = told(self.trainer, "class_counts") or self._class_counts
        drawn_equally = told(self.trainer, "sampling") == "balanced"
        if self._class_weights == "balanced" and stage == "fit":
            self._balance(drawn_equally)
        super().setup(stage)
        if stage == "fit" and self._head_is_fresh and self._init_bias and self._class_counts and not drawn_equally:
            set_bias_from_counts(self.head, self._class_counts)
            self._head_is_fresh = False

    def _balance(self, drawn_equally: bool) -> None:
        if drawn_equally:
            raise ValueError(
                "class_weights='balanced' and data.sampling='balanced' both make rare classes count as much as others, "
                "and together they count more: leave one of them out."
            )
        if not self._class_counts:
            raise ValueError(
                "class_weights='balanced' needs the number of examples of each class, which the data does not tell "
                "(class_counts): give the weights as a list."
            )
        self._forget("loss")

    def on_train_start(self) -> None:
        """Forget the temperature: other weights need another one."""
        super().on_train_start()
        if self.temperature != 1:
            rank_zero_info("The temperature is 1 again, as the weights change: calibrate anew after training.")
            self.temperature.fill_(1)

    def step(self, batch: Any, stage: RunStage) -> Tensor:
        """Compute the loss of one batch, of images and class numbers (N,), or shares (N, num_classes) once mixed."""
        images, target = batch
        if stage == "train":
            images, target = self._mixing(images, target, self.num_classes)
        return super().step((images, target), stage)

    def predict_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        """Give the probabilities (N, num_classes) for a batch of images, with or without targets."""
        return (super().predict_step(batch, batch_idx) / self.temperature).softmax(dim=-1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write the temperature beside what the base class writes."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[ENTRY]["temperature"] = self.temperature.item()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the temperature too; 1 where a checkpoint is of before there was one."""
        super().on_load_checkpoint(checkpoint)
        self.temperature.fill_(checkpoint.get(ENTRY, {}).get("temperature", 1.0))

    def describe_answer(self, output: Tensor) -> Prediction:
        """Name the class of one row of probabilities (num_classes,)."""
        probabilities = dict(zip(self._names_or_numbers, output.tolist(), strict=True))
        label = self._names_or_numbers[int(output.argmax())]
        return Prediction(label, probabilities[label], probabilities)

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Measure probabilities (N, num_classes), whichever modules gave them, for true classes (N,)."""
        smallest = torch.finfo(outputs.dtype).tiny
        return super().measure(outputs.clamp(min=smallest).log(), targets)  # metrics take logits, whose softmax it is
