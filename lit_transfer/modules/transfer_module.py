"""The base of all modules: a pretrained backbone, a head, and four hooks to make it one's own."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format
from torchmetrics import Metric, MetricCollection
from typing_extensions import Self

from lit_transfer._entry import ENTRY
from lit_transfer.backbones import Backbone, Preprocessing, create_backbone
from lit_transfer.heads import HeadName, check_head, create_head, takes_map
from lit_transfer.lora import add_lora, lora_options
from lit_transfer.modules import _hub
from lit_transfer.modules._learning_rate import warmup_cosine
from lit_transfer.modules._portable import as_checkpoint
from lit_transfer.modules._saved import class_path, outermost_init, plain_hparams, read_saved, resolve_class
from lit_transfer.parameter_groups import param_groups
from lit_transfer.schedule import refuse_without_schedule
from lit_transfer.stages import Stage, stages_of
from lit_transfer.weights import WeightsError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RunStage = Literal["train", "val", "test"]


class TransferModule(LightningModule):
    """A pretrained backbone under a new head, trained with one rate for the head and a smaller one for the backbone.

    Derive from it and override what your task needs: `configure_head`, `configure_loss`, `configure_metrics` and
    `step(batch, stage) -> loss`. They run at the end of this `__init__` where `num_outputs` is known, otherwise in
    `setup`; `self.backbone` and `self.hparams` exist by then. Every method of LightningModule stays open.

    The loss is logged as `train_loss`, `val_loss` and `test_loss`; metrics with the prefixes `val_` and `test_`.
    """

    # By which metric, and in which direction, the command line keeps the best checkpoint.
    monitor: ClassVar[tuple[str, str]] = ("val_loss", "min")
    # Which buffers stay as they are where weights come from a file that lacks them, as one of another library does.
    optional_buffers: tuple[str, ...] = ()
    # What `_build` makes for the head that there is, and a new head forgets.
    _made: ClassVar[tuple[str, ...]] = ("head", "loss", "val_metrics", "test_metrics")
    head: nn.Module
    loss: nn.Module
    val_metrics: MetricCollection
    test_metrics: MetricCollection

    def __init__(
        self,
        backbone: str | nn.Module = "resnet18",
        weights: str | None = "DEFAULT",
        *,
        num_outputs: int | None = None,
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
        """Build the backbone with its weights, and the head where its width is known.

        Args:
            backbone: A name of `list_backbones`, `timm/NAME`, `hf/ORG/NAME`, or a module whose classifier is cut off.
            weights: `"DEFAULT"` for the pretrained ones, a weights name, a path or URL, or None for random ones.
            num_outputs: Width of the head's answer; None if the data or `configure_head` tells.
            head: `"linear"`; `"mlp"`; `"cosine"` for scaled cosines; `"attention"` to pool the last feature map by
                learned weights; or a module from (N, num_features) to the answer, or from the map (N, num_features, H,
                W) if it has `takes_map = True`.
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
        """
        super().__init__()
        modules = [name for name, value in (("backbone", backbone), ("head", head)) if isinstance(value, nn.Module)]
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler", *modules], frame=outermost_init(self))
        self._optimizer, self._lr_scheduler = optimizer, lr_scheduler
        self._backbone_lr_factor, self._layer_decay = backbone_lr_factor, layer_decay
        self._channels_last, self._compile = channels_last, compile
        self._head_name, self._dropout = (None if isinstance(head, nn.Module) else head), dropout
        self.num_outputs = num_outputs
        self._head_is_fresh = not isinstance(head, nn.Module)
        self.backbone: Backbone = create_backbone(
            backbone, weights=weights, in_channels=in_channels, input_size=input_size
        )
        if channels_last:
            convert_conv2d_weight_memory_format(self.backbone, torch.channels_last)
        # A checkpoint is rebuilt without the weights, which may have been made for another size than the default ones.
        self._built_for = self.backbone.preprocessing.crop
        if isinstance(head, nn.Module):
            self.head = check_head(head, self.backbone.num_features, num_outputs)
            self.backbone.give_map(takes_map(self.head))
        if num_outputs is not None:
            self._build()

    # --- the four hooks -------------------------------------------------------------------------------------------

    def configure_head(self) -> nn.Module:
        """Make the head: takes (N, backbone.num_features), or a map if it has `takes_map`; gives the answer."""
        if self.num_outputs is None:
            raise ValueError(
                "num_outputs is not given and the data does not tell it: pass it, or override configure_head."
            )
        name = self._head_name or "linear"
        return create_head(name, self.backbone.num_features, self.num_outputs, dropout=self._dropout)

    def configure_loss(self) -> nn.Module:
        """Make the loss that `step` computes, as `self.loss`."""
        raise NotImplementedError(f"{type(self).__name__} must define configure_loss, or its own step.")

    def configure_metrics(self) -> dict[str, Metric]:
        """Make the metrics that `step` updates; each is logged under its name here, with the prefix of the stage."""
        return {}

    def step(self, batch: Any, stage: RunStage) -> Tensor:
        """Compute the loss of one batch, and update the metrics.

        Args:
            batch: What the data gives; here a pair of images (N, C, H, W) and targets.
            stage: `"train"`, `"val"` or `"test"`.

        Returns:
            The loss, a scalar.
        """
        images, target = batch
        answer = self(images)
        self.update_metrics(stage, answer, target)
        loss: Tensor = self.loss(answer, target)
        return loss

    # --- what the hooks make --------------------------------------------------------------------------------------

    def _build(self) -> None:
        """Call the configuring hooks, each once; what exists already stays."""
        if not self._has("head"):
            self.head = self.configure_head()
        self.backbone.give_map(takes_map(self.head))
        if not self._has("val_metrics"):
            self.val_metrics = MetricCollection(dict(self.configure_metrics()), prefix="val_")
            self.test_metrics = self.val_metrics.clone(prefix="test_")
        needs_loss = type(self).step is TransferModule.step
        if not self._has("loss") and (needs_loss or type(self).configure_loss is not TransferModule.configure_loss):
            self.loss = self.configure_loss()

    def _has(self, name: str) -> bool:
        return any(name in held for held in (self._modules, self._buffers, self.__dict__))

    def reset_head(self, *, num_outputs: int | None = None, head: HeadName | nn.Module | None = None) -> None:
        """Put a fresh head on the backbone, which stays as it is.

        Args:
            num_outputs: Width of the new answer; None keeps it.
            head: Name or module; None keeps the kind.

        Raises:
            RuntimeError: If optimizers exist that hold the old head's parameters.
        """
        self._refuse_with_optimizers()
        if num_outputs is not None:
            self.num_outputs = num_outputs
        self._forget(*self._made)
        self._head_is_fresh = not isinstance(head, nn.Module)
        if isinstance(head, nn.Module):
            self.head = check_head(head, self.backbone.num_features, self.num_outputs)
        elif head is not None:
            self._head_name = head
        self._build()

    def _refuse_with_optimizers(self) -> None:
        if self._trainer is not None and self._trainer.optimizers:
            raise RuntimeError(
                "reset_head comes too late: the optimizers hold the old head's parameters. Call it before fit, or on "
                "a module from load_from_checkpoint."
            )

    def _forget(self, *names: str) -> None:
        for name in names:
            for held in (self._modules, self._buffers, self.__dict__):
                held.pop(name, None)

    def update_metrics(self, stage: RunStage, answer: Tensor, target: Tensor) -> None:
        """Update the metrics of a stage with one batch; in training only the loss is followed."""
        if (metrics := self.measured(stage)) is not None:
            metrics.update(answer, target)

    def measured(self, stage: RunStage) -> MetricCollection | None:
        """Give the metrics that a batch of this stage updates; None in training and in the sanity check."""
        return self._metrics(stage) if self._is_measured(stage) else None

    def _is_measured(self, stage: RunStage) -> bool:
        # The sanity check sees a few batches, often of one class: no metric means anything there.
        return stage != "train" and not (self._trainer is not None and self._trainer.sanity_checking)

    def _metrics(self, stage: RunStage) -> MetricCollection:
        return self.val_metrics if stage == "val" else self.test_metrics

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages from input to output, under the names that this module's parameters have; the head is last."""
        body = tuple(
            Stage(
                stage.name,
                tuple(f"backbone.{name}" for name in stage.modules),
                tuple(f"backbone.{name}" for name in stage.parameters),
                stage.output_shape,
            )
            for stage in stages_of(self.backbone)
        )
        if not self._has("head"):
            return body
        return (
            *body,
            Stage("head", ("head",), tuple(f"head.{name}" for name, _ in self.head.named_parameters()), None),
        )

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are made ready for the backbone."""
        return self.backbone.preprocessing

    def forward(self, images: Tensor) -> Tensor:
        """Give the head's answer for images of shape (N, C, H, W)."""
        if self._channels_last and images.ndim == 4:  # convolutions pass the layout on
            images = images.contiguous(memory_format=torch.channels_last)
        answer: Tensor = self.head(self.backbone(images))
        return answer

    # --- LightningModule ------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Take over the preprocessing that the data uses, and build what had to wait for the data."""
        datamodule = getattr(self.trainer, "datamodule", None)
        if isinstance(used := getattr(datamodule, "preprocessing", None), Preprocessing):
            self.backbone.preprocessing = used
        self._refuse_early_copies()
        self._build()
        if self._compile and stage == "fit":
            self.backbone.compile()  # in place: parameters keep their names

    def _refuse_early_copies(self) -> None:
        settings: Any = self.trainer  # Lightning does not annotate what its connectors set
        copied = [c for c in settings.callbacks if getattr(c, "_average_model", None) is not None]
        if copied and not self._has("head"):
            raise ValueError(
                f"{type(copied[0]).__name__} has copied the module before its head is built, as the data tells its "
                "width: use lit_transfer.callbacks.EMA in its place, or give the number of outputs to the module."
            )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Log and return the loss of a training batch."""
        loss = self.step(batch, "train")
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def on_validation_start(self) -> None:
        """Start the metrics afresh: what `validate` left in them was made in inference mode, which `fit` cannot use."""
        self.val_metrics.reset()

    def on_test_start(self) -> None:
        """Start the metrics afresh."""
        self.test_metrics.reset()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the loss and the metrics over the validation data."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Log the loss and the metrics over the test data."""
        self._evaluate(batch, "test")

    def _evaluate(self, batch: Any, stage: RunStage) -> None:
        self.log(f"{stage}_loss", self.step(batch, stage), prog_bar=True, on_epoch=True, sync_dist=True)
        if self._is_measured(stage):
            self.log_dict(self._metrics(stage), prog_bar=stage == "val", on_epoch=True)

    def predict_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        """Give the answer for a batch of images, or for the images of a pair of images and targets."""
        images = batch[0] if isinstance(batch, list | tuple) else batch
        answer: Tensor = self(images)
        return answer

    def describe_answer(self, output: Tensor) -> Any:
        """Make of one row of `predict_step` what a person asked for; here the bare numbers."""
        return output.tolist()

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Measure answers as `predict_step` gives them, whichever modules gave them, such as those of all folds.

        Args:
            outputs: Rows of `predict_step`, (N, ...).
            targets: Their targets, (N,) or (N, num_outputs).

        Returns:
            Name of each of `configure_metrics` -> its value.
        """
        metrics = MetricCollection(dict(self.configure_metrics()))
        metrics.update(outputs, targets)
        return {name: float(value) for name, value in metrics.compute().items()} if len(metrics) else {}

    def figures(self, stage: RunStage) -> dict[str, "Figure"]:
        """Draw what a stage found out when it ran last; here nothing.

        Returns:
            Name of each picture, which is also that of its file -> the figure.
        """
        return {}

    def configure_optimizers(self) -> Any:
        """Give the optimizer over named groups by stage, and the scheduler where a Trainer tells the run's length."""
        base = self._optimizer([nn.Parameter(torch.zeros(1))]).defaults
        groups = param_groups(
            self,
            base["lr"] * self._backbone_lr_factor,
            base.get("weight_decay", 0.0),
            layer_decay=self._layer_decay,
            head_lr=base["lr"],
            stages=self.stages,
        )
        optimizer = self._optimizer(groups)
        if self._lr_scheduler is not None:
            scheduler = self._lr_scheduler(optimizer)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}
        if self._trainer is None:
            return optimizer
        schedule = warmup_cosine(optimizer, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write what a reader without the training code needs; rebuilding must not download the weights again."""
        hparams = plain_hparams(checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {}))
        hparams.update({name: value for name, value in self._arguments_now().items() if name in hparams})
        checkpoint[ENTRY] = {
            "class_path": class_path(self),
            "weights": self.backbone.weights,
            "num_outputs": self.num_outputs,
            "head": self._head_name,
            "preprocessing": self.preprocessing.to_dict(),
            "lora": lora_options(self),
        }
        checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY] = {**hparams, "weights": None, "input_size": self._built_for}

    def _arguments_now(self) -> dict[str, Any]:
        """Give the arguments with which a module with this head is built, which may not be the first one."""
        return {"num_outputs": self.num_outputs, "head": self._head_name}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build what had to wait for the data, and take over the preprocessing that was saved.

        Raises:
            ValueError: If a fit goes on without the FinetuningSchedule that the checkpoint's run had.
        """
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            settings: Any = self._trainer  # Lightning does not annotate what its connectors set
            refuse_without_schedule(checkpoint.get("callbacks", {}), [c.state_key for c in settings.callbacks])
        if saved := checkpoint.get(ENTRY):
            self.backbone.preprocessing = Preprocessing.from_dict(saved["preprocessing"])
            self.num_outputs, self._head_name = saved["num_outputs"], saved["head"]
        self._build()
        if saved and saved.get("lora") and lora_options(self) is None:
            add_lora(self, **saved["lora"])
        self._head_is_fresh = False

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Rebuild the module that was saved, whichever class of this family it was, without any download.

        Takes the arguments of `LightningModule.load_from_checkpoint`; called on a base class it gives the class that
        was saved. A safetensors file that `export` or `save_pretrained` wrote is read as well.

        Raises:
            ImportError: If the saved class cannot be imported here.
            TypeError: If the saved class is not related to this one.
            WeightsError: If the file is damaged or no checkpoint.
        """
        saved = read_saved(checkpoint_path)
        if saved is None:
            raise WeightsError(
                f"{checkpoint_path} is no checkpoint of a TransferModule. "
                f"Load its weights into a module instead: {cls.__name__}(..., weights=PATH)."
            )
        target = resolve_class(saved[0]["class_path"], cls)
        if target is not cls:
            return cast("Self", target.load_from_checkpoint(checkpoint_path, *args, **kwargs))
        return super().load_from_checkpoint(as_checkpoint(checkpoint_path), *args, **kwargs)

    # --- huggingface's hub ----------------------------------------------------------------------------------------

    save_pretrained, push_to_hub = _hub.save_pretrained, _hub.push_to_hub

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> Self:
        """Build the module that `save_pretrained` or `push_to_hub` wrote, whichever class of this family it was.

        Args:
            name: A folder, which needs no network, or a name on huggingface's hub, such as "me/ants".
            options: `revision`, `token`, `cache_dir`, `force_download` and `local_files_only` as huggingface_hub's
                `ModelHubMixin.from_pretrained` takes them; all others are arguments of `load_from_checkpoint`, such as
                a `backbone` that was given as a module.

        Returns:
            The module, in eval mode, on the CPU.

        Raises:
            ImportError: If huggingface_hub is not installed, or the saved class cannot be imported.
            FileNotFoundError: If there is no such folder, or no module in it.
            WeightsError: If the module there was written by another library.
        """
        return _hub.load_pretrained(cls, name, **options)
