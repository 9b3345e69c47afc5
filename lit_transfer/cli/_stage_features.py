"""Features of all images at the end of every stage, computed in one pass, or found where an earlier run left them."""

import shutil
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader

from lit_transfer.features import (
    Entry,
    Filling,
    Layout,
    UnknownContentError,
    fingerprint,
    is_random,
    open_entry,
    prepare,
)
from lit_transfer.features._pooled import PooledStages

_SPLITS: tuple[Literal["train", "val"], ...] = ("train", "val")
_LOOKED_AT = 4  # images that are run before all others


@dataclass(frozen=True)
class Features:
    """What is known of the images of one set.

    Attributes:
        vectors: For each stage, (images, width) in float32.
        labels: Number of the class of each image.
        found: Whether an earlier run had computed them.
        lost: Why no later run will find them; None if it will.
    """

    vectors: dict[str, npt.NDArray[np.float32]]
    labels: npt.NDArray[np.int64]
    found: bool
    lost: str | None = None


class FeatureTrainer(Trainer):
    """Goes as far as `fit` does before its first batch, and runs the backbone once over all images.

    Attributes:
        folder: Where features are stored.
        train: Features of the images to learn from.
        val: Features of the images to measure on.
    """

    folder: Path
    train: Features
    val: Features

    def probe(self, model: LightningModule, datamodule: LightningDataModule | None = None) -> None:
        """Measure how much each stage of a backbone knows of your classes: linear probes, k-NN, fine-tuning above it.

        Args:
            model: A module with a `backbone`.
            datamodule: Its data.
        """
        settings: Any = self  # Lightning does not annotate what its connectors set
        settings.callbacks.append(_Read())
        with suppress(_Done):
            self.fit(model, datamodule=datamodule)


class _Done(Exception):  # noqa: N818  # nothing went wrong
    """Ends the fit before its first batch."""


class _Read(Callback):
    """Reads in `on_fit_start`, where the data is set up for the module, and the module on its device."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(trainer, FeatureTrainer)
        pl_module.get_submodule("backbone").eval()
        with torch.inference_mode(), trainer.precision_plugin.forward_context():
            train, val = (_Set(trainer, pl_module, split) for split in _SPLITS)
            trainer.train, trainer.val = train.features(), val.features()
        raise _Done


class _Set:
    """The images of one set and how they become features."""

    def __init__(self, trainer: FeatureTrainer, module: LightningModule, split: Literal["train", "val"]) -> None:
        """Ask for the loader of the set, for its dataset and how it is read.

        Raises:
            ValueError: It has none, or several, or one without a length.
        """
        self.trainer, self.module, self.split = trainer, module, split
        self.backbone: Any = module.backbone
        source: Any = trainer.datamodule  # type: ignore[attr-defined]  # Lightning does not annotate it
        loaders = getattr(source, f"{split}_dataloader")()
        loaders = loaders if isinstance(loaders, list | tuple) else [loaders]
        usable = len(loaders) == 1 and isinstance(loaders[0], DataLoader) and hasattr(loaders[0].dataset, "__len__")
        if not usable:
            raise ValueError(
                f"{type(source).__name__} gives {len(loaders)} loaders of {split} images: probe needs one torch "
                "DataLoader each of train and val, whose dataset has a length."
            )
        self.loader: DataLoader[Any] = loaders[0]
        self.dataset: Any = loaders[0].dataset
        size, count = loaders[0].batch_size or 32, len(self.dataset)
        self.batches = [list(range(start, min(start + size, count))) for start in range(0, count, size)]
        self.is_still = hasattr(source, "augment")  # the command has switched augmentation off

    def features(self) -> Features:
        """Open the entry of the store, or compute it."""
        key, why = self._key()
        entry = open_entry(self.trainer.folder, key)
        found = entry is not None
        entry = entry or self._fill(key)
        widths: dict[str, int] = entry.about["widths"]
        rows = range(entry.layout.rows)
        parts = torch.split(torch.stack([entry.feature(row) for row in rows]), list(widths.values()), 1)
        labels = np.array([entry.rest(row)[0] for row in rows], np.int64)
        if why is not None:
            shutil.rmtree(entry.path)
        return Features({name: part.numpy() for name, part in zip(widths, parts, strict=True)}, labels, found, why)

    def _key(self) -> tuple[str, str | None]:
        """Give the name of the entry and, if no other run can know it, the reason."""
        backbone, trainer = self.backbone, self.trainer
        hooks = [type(self.module).on_after_batch_transfer]
        hooks.append(type(trainer.datamodule).on_after_batch_transfer)  # type: ignore[attr-defined]  # the CLI's is set
        try:
            name = fingerprint(
                kind="vectors at every stage",
                weights={**dict(backbone.named_parameters()), **dict(backbone.named_buffers())},
                architecture=[repr(backbone), {type(part) for part in backbone.modules()}],
                data=[self.dataset, self.loader.collate_fn],
                hooks=hooks,
                run=[str(trainer.precision), trainer.strategy.root_device.type, torch.__version__],
            )
        except UnknownContentError as error:
            return f"run-{uuid.uuid4().hex}", str(error)
        return name, None

    def _fill(self, key: str) -> Entry:
        first, _ = self._batch(self.loader.collate_fn([self.dataset[i] for i in self.batches[0][:_LOOKED_AT]]))
        if not self.is_still:
            self._refuse_random()
        stages = PooledStages(self.backbone, first)
        width = sum(stages.widths.values())
        about = {"module": type(self.module).__name__, "boundary": "backbone, every stage averaged"}
        layout = Layout(len(self.dataset), (width,), "float32", len(self.batches))
        prepare(self.trainer.folder, key, layout, {**about, "split": self.split, "widths": stages.widths})
        filling = Filling(self.trainer.folder, key)
        try:
            pending = filling.pending()
            for number, batch in zip(pending, self._read([self.batches[n] for n in pending]), strict=True):
                images, labels = self._batch(batch)
                vectors = torch.cat(list(stages(images).values()), 1)
                filling.write(number, self.batches[number], vectors, [f"[{int(label)}]" for label in labels])
        finally:
            filling.close()
        return filling.finish()

    def _read(self, batches: Sequence[Sequence[int]]) -> Any:
        loader = DataLoader(
            self.dataset,
            batch_sampler=batches,  # type: ignore[arg-type]  # a list of lists is one
            num_workers=self.loader.num_workers,
            collate_fn=self.loader.collate_fn,
        )
        console = Console(stderr=True)  # standard output is for the answer
        return track(loader, f"{self.split} images", console=console, disable=not console.is_terminal, transient=True)

    def _batch(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Bring a batch to the device as a fit does.

        Raises:
            TypeError: It is no pair of images and class numbers.
        """
        if not isinstance(batch, list | tuple) or len(batch) != 2 or not all(isinstance(x, Tensor) for x in batch):
            raise TypeError(f"probe needs batches of (images, class numbers), got a {type(batch).__name__}.")
        images, labels = self.trainer.strategy.batch_to_device(self.trainer.precision_plugin.convert_input(batch))
        if labels.ndim != 1 or labels.is_floating_point():
            raise TypeError(
                f"probe needs the number of one class for each image; the {self.split} labels have shape "
                f"{tuple(labels.shape)} and dtype {labels.dtype}. It tells classes apart: of a table, probe one label "
                "at a time (--data.target LABEL --data.task class --model ImageClassifier); for numbers, train a head "
                "alone (fit with FinetuningSchedule's linear_probe and FeatureCaching) and compare."
            )
        return images, labels

    def _refuse_random(self) -> None:
        """Draw the first images several times."""
        chosen = self.batches[0][:_LOOKED_AT]
        collate = self.loader.collate_fn

        def draw(number: int) -> Tensor:
            torch.manual_seed(number)
            return self._batch(collate([self.dataset[index] for index in chosen]))[0]

        if is_random(draw):
            raise ValueError(
                f"The {self.split} images differ each time that they are drawn: probe runs each through the backbone "
                "once, so leave the augmentation out of the datamodule."
            )
