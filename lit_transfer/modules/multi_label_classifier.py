"""Any number of labels for each image: multi-label classification with a threshold for each label."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.functional.classification import multilabel_average_precision, multilabel_f1_score

from lit_transfer.heads import HeadName, set_bias_from_rates
from lit_transfer.modules._losses import LabelFocalLoss, LabelLossName, check_focal
from lit_transfer.modules._mixing import Mixing
from lit_transfer.modules._named_outputs import Answers, NamedOutputs
from lit_transfer.modules._thresholds import UNTUNED, best_thresholds
from lit_transfer.modules._told_by_data import listed, told, training_size, training_targets
from lit_transfer.modules.transfer_module import RunStage

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class LabelPrediction:
    """The answer for one image.

    Attributes:
        labels: Names of the labels whose probability reaches their threshold.
        probabilities: Name of each label -> its probability; they do not add up to 1.
    """

    labels: list[str]
    probabilities: dict[str, float]

    def columns(self) -> dict[str, Any]:
        """Give the columns of a table: one for each label beside those that were given."""
        return {"labels": "; ".join(self.labels), **{f"p({name})": p for name, p in self.probabilities.items()}}


class MultiLabelClassifier(NamedOutputs):
    """Give each image any number of labels, each by a probability of its own.

    Each validation tunes `thresholds`, a buffer and part of every checkpoint: the probability from which on a label is
    given, at which its F1 on the validation data is the highest. A label that no validation image has keeps 0.5, which
    is told. Tests and predictions leave them as they are.

    Logged on validation and test data: `val_loss`, `val_map` (mean average precision, which no threshold enters),
    `val_f1` and `val_f1_NAME` of each label, at the thresholds. The means are over the labels that some image has, and
    the others have no F1 of their own. On the validation data itself, F1 at tuned thresholds is a little flattered.

    Attributes:
        label_names: Names of the labels in the order of the outputs, or None if nobody told them.
        thresholds: Probability (num_labels,) from which on each label is given.
    """

    monitor: ClassVar[tuple[str, str]] = ("val_map", "max")
    _thing, _things = "label", "labels"
    _told_as = ("label_names",)
    optional_buffers = ("thresholds", "loss.pos_weight")
    _made = (*NamedOutputs._made, "thresholds")
    thresholds: Tensor

    def __init__(
        self,
        backbone: str | nn.Module = "resnet18",
        weights: str | None = "DEFAULT",
        *,
        num_labels: int | None = None,
        label_names: list[str] | None = None,
        loss: LabelLossName = "bce",
        focal_gamma: float = 2.0,
        pos_weight: list[float] | Literal["balanced"] | None = None,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        head: HeadName | nn.Module = "linear",
        dropout: float = 0.0,
        in_channels: int = 3,
        input_size: int | None = None,
        init_bias: bool = True,
        optimizer: OptimizerCallable = lambda groups: torch.optim.AdamW(groups, lr=3e-3, weight_decay=0.05),
        lr_scheduler: LRSchedulerCallable | None = None,
        backbone_lr_factor: float = 0.03,
        layer_decay: float | None = None,
        channels_last: bool = True,
        compile: bool = False,  # noqa: A002  # the word of torch and of Lightning's users
    ) -> None:
        """Build the backbone with its weights, and the head where the number of labels is known.

        Args:
            backbone: A name of `list_backbones`, `timm/NAME`, `hf/ORG/NAME`, or a module whose classifier is cut off.
            weights: `"DEFAULT"` for the pretrained ones, a weights name, a path or URL, or None for random ones.
            num_labels: Number of labels; None takes it from `label_names` or from the data.
            label_names: Names in the order of the outputs; None takes them from the data.
            loss: `"bce"` for binary cross entropy, or `"focal"` for one in which labels that are right already count
                less.
            focal_gamma: How much less: they are multiplied by (1 - p) ** focal_gamma, p being the probability of what
                is right.
            pos_weight: How many times an image that has a label counts in the loss of that label, for each label;
                `"balanced"` for the number of images without it over those with it.
            mixup: Mix the images of each training batch in pairs, by shares drawn from Beta(mixup, mixup); 0 for none,
                0.2 is usual. Validation and test are as they are.
            cutmix: Put a rectangle of each training image into another, its area drawn likewise; 0 for none, 1 is
                usual. With both, each batch draws one of the two.
            head: `"linear"`; `"mlp"`; `"cosine"` for scaled cosines; `"attention"` to pool the last feature map by
                learned weights; or a module from (N, num_features) to (N, num_labels).
            dropout: Probability with which a feature is dropped before the head's last layer.
            in_channels: Channels of the images; the first convolution is adapted.
            input_size: Side of the images in pixels; None for the size that the weights were made with.
            init_bias: Start the head's bias at the log odds of the labels, if the data tells how often each is there
                and no `pos_weight` is given.
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
            ValueError: If `num_labels`, `label_names`, `pos_weight` or `head` contradict each other, or `loss`,
                `focal_gamma`, `mixup` or `cutmix` is out of its range.
        """
        self.label_names = label_names
        self._focal_gamma = check_focal(loss, get_args(LabelLossName), focal_gamma)
        self._mixing = Mixing(mixup, cutmix)
        self._pos_weight = pos_weight
        self._counts: tuple[list[int], int] | None = None
        self._init_bias = init_bias and pos_weight is None
        self._silent: list[str] = []
        super().__init__(
            backbone,
            weights,
            num_outputs=self._agreed_number(num_labels, label_names),
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

    @property
    def num_labels(self) -> int | None:
        """Number of labels, or None before the data told it."""
        return self.num_outputs

    def configure_loss(self) -> nn.Module:
        """Binary cross entropy or focal loss of each label, with the weights that were asked for."""
        weights = self._weights_of_labels()
        if self._focal_gamma is not None:
            return LabelFocalLoss(gamma=self._focal_gamma, pos_weight=weights)
        return nn.BCEWithLogitsLoss(pos_weight=weights)

    def _weights_of_labels(self) -> Tensor | None:
        if self._pos_weight is None:
            return None
        if self._pos_weight == "balanced":
            # Without the data's counts (a checkpoint that is only evaluated) the buffer is filled from the file.
            counts, total = self._counts or ([1] * (self.num_labels or 1), 2)
            having = torch.tensor(counts, dtype=torch.float32)
            return (total - having).clamp(min=1) / having.clamp(min=1)
        if len(self._pos_weight) != self.num_labels:
            raise ValueError(f"pos_weight has {len(self._pos_weight)} values for {self.num_labels} labels.")
        return torch.tensor(self._pos_weight, dtype=torch.float32)

    def configure_record(self) -> Metric:
        """All logits and targets."""
        return Answers()

    def _build(self) -> None:
        """Build what is missing, and the thresholds."""
        if not self._has("thresholds") and self.num_labels is not None:
            self.register_buffer("thresholds", torch.full((self.num_labels,), UNTUNED, device=self.device))
        super()._build()

    def reset_head(  # type: ignore[override]  # a classifier counts labels, not outputs
        self,
        *,
        num_labels: int | None = None,
        label_names: list[str] | None = None,
        head: HeadName | nn.Module | None = None,
    ) -> None:
        """Put a fresh head on the backbone, which stays as it is; the thresholds are 0.5 again.

        Args:
            num_labels: Number of the new labels; None takes it from `label_names`, or keeps it.
            label_names: Their names; None forgets the old ones.
            head: Name or module; None keeps the kind.

        Raises:
            RuntimeError: If optimizers exist that hold the old head's parameters.
            ValueError: If the number of names is not `num_labels`.
        """
        self._reset_head(num_labels, label_names, head)

    def setup(self, stage: str) -> None:
        """Take the labels and how often each is there from the data.

        Raises:
            ValueError: If the data has other labels than this module, or does not tell what is asked of it.
        """
        if stage == "fit":
            self._counts = self._counted() or self._counts
            if self._pos_weight == "balanced":
                self._balance()
        super().setup(stage)
        if stage == "fit" and self._head_is_fresh and self._init_bias and self._counts:
            set_bias_from_rates(self.head, *self._counts)
            self._head_is_fresh = False

    def _counted(self) -> tuple[list[int], int] | None:
        """Give how many training images have each label, and how many images there are."""
        counts, total = told(self.trainer, "label_counts"), training_size(self.trainer)
        if counts is not None and total is not None:
            return list(counts), total
        targets = training_targets(self.trainer)
        return None if targets is None else ((targets > 0.5).sum(0).tolist(), len(targets))

    def _balance(self) -> None:
        if not self._counts:
            raise ValueError(
                "pos_weight='balanced' needs the number of images that have each label, and of all, which the data "
                "does not tell (label_counts and a train_dataset with a length): give the weights as a list."
            )
        self._forget("loss")

    def step(self, batch: Any, stage: RunStage) -> Tensor:
        """Compute the loss of one batch, of images and targets (N, num_labels) of 0 and 1."""
        images, target = batch[0], self._columns(batch[1])
        if stage == "train":
            images, target = self._mixing(images, target, self.num_labels)
        return super().step((images, target), stage)

    def summarise(self, stage: RunStage, record: Tensor) -> None:
        """Tune the thresholds by validation data, and log what is measured with them."""
        probabilities, targets = record[0].sigmoid(), record[1].long()
        there = targets.any(0)
        if stage == "val":
            self.thresholds.copy_(best_thresholds(probabilities, targets))
            self._tell_silent([name for name, some in zip(self._names_or_numbers, there, strict=True) if not some])
        f1 = self._f1(record)
        self._log_value("map", stage, self._map(probabilities[:, there], targets[:, there]))
        self._log_value("f1", stage, f1[there].mean().item())
        by_name = zip(self._names_or_numbers, f1.tolist(), there, strict=True)
        self._log_by_name("f1", stage, {name: value for name, value, some in by_name if some})

    def _f1(self, record: Tensor) -> Tensor:
        """F1 of each label at its threshold."""
        given, targets = (record[0].sigmoid() >= self.thresholds.cpu()).long(), record[1].long()
        return multilabel_f1_score(given, targets, targets.shape[1], average="none", validate_args=False).reshape(-1)

    @staticmethod
    def _map(probabilities: Tensor, targets: Tensor) -> float:
        number = targets.shape[1]
        if number == 0:
            return float("nan")
        # By label: the mean of all would warn of labels without an image, which are left out and told here.
        average = multilabel_average_precision(probabilities, targets, number, average="none", validate_args=False)
        return average.mean().item()

    def _tell_silent(self, names: list[str]) -> None:
        if names and names != self._silent:
            rank_zero_info(
                f"No validation image has {listed(names)}: thresholds of 0.5 stay, and the means of val_map and val_f1 "
                "are over the other labels."
            )
        self._silent = names

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Measure probabilities (N, num_labels) by what no threshold enters: mean average precision."""
        targets = self._columns(targets).long()
        there = targets.any(0)
        return {**super().measure(outputs, targets), "map": self._map(outputs[:, there], targets[:, there])}

    def figures(self, stage: RunStage) -> dict[str, "Figure"]:
        """Draw threshold and F1 of each label in a stage that ran."""
        from lit_transfer.modules._pictures import plot_thresholds  # matplotlib is slow to import

        if stage not in self.records:
            return {}
        record = self.records[stage]
        counts = record[1].sum(0).int().tolist()
        f1, thresholds = self._f1(record).tolist(), self.thresholds.tolist()
        return {"thresholds": plot_thresholds(thresholds, f1, counts, self._names_or_numbers)}

    def predict_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        """Give the probabilities (N, num_labels) for a batch of images, with or without targets."""
        return super().predict_step(batch, batch_idx).sigmoid()

    def describe_answer(self, output: Tensor) -> LabelPrediction:
        """Name the labels of one row of probabilities (num_labels,)."""
        names, given = self._names_or_numbers, output >= self.thresholds.to(output.device)
        labels = [name for name, yes in zip(names, given.tolist(), strict=True) if yes]
        return LabelPrediction(labels, dict(zip(names, output.tolist(), strict=True)))
