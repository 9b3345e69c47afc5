"""The frozen front of a backbone computed once: the callback that serves its features from then on."""

import os
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from lit_transfer.callbacks._feature_fast import FastRun
from lit_transfer.callbacks._feature_options import Options
from lit_transfer.callbacks._feature_run import CachedRun
from lit_transfer.features import Fast, cache_folder, check_compiler

__all__ = ["FeatureCaching"]


class FeatureCaching(Callback):
    """Computes what a frozen front of the backbone gives once for each sample, and trains on that.

    The front is the whole backbone or its first stages, frozen by `FinetuningSchedule` or otherwise. Its output for
    each training and validation sample is stored; the loaders then give features in the place of images, and the
    backbone goes on from these, for any LightningModule whose step hands the batch's images to its backbone.

    When the front grows or shrinks at the start of an epoch, features at its new end are served from then on if they
    are stored, or if it stays as it is for long enough that computing them pays: 2 epochs, or 1 + k with k views. They
    are computed from those of the longest stored front that it begins with, or from images. Otherwise, and in an epoch
    in the middle of which a part of it may begin to train, images are used again; `validate`, `test` and `predict` use
    them anyway.

    In `setup` it goes between Lightning's loops and their loaders, for which `configure_optimizers` may ask. It fills
    the store when a loop asks after `on_fit_start`: weights and progress are restored then, and no iterator runs.
    """

    def __init__(
        self,
        backbone: str = "backbone",
        *,
        views: int = 1,
        dtype: Literal["float32", "bfloat16", "float16"] | None = None,
        fast: Fast = True,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        """Choose what is stored.

        Args:
            backbone: Dotted name of the module that takes the images.
            views: How many augmented views of each training image are stored; each epoch draws among them. With 1,
                random augmentation is refused. With 0 nothing is stored: the front runs for every batch of images,
                whose augmentation may be random, on a copy made for inference (see `fast`), where that gives the same.
            dtype: In which dtype features are stored; None for the one in which they are computed. bfloat16 and float16
                take half the room and change each value by up to 1/256 and 1/2048 of it.
            fast: Compute features on a copy of the front made for inference, and take those of runs with another batch
                size: they differ by rounding, at most by 1e-4 of the largest. "compile": the copy is compiled too,
                weights included, which takes a C++ compiler and 10 to 60 s: it pays from several thousand images on.
                "bfloat16": it computes in that dtype, at most 4e-2 of the largest apart. False: training is bitwise as
                without.
            folder: Where features are stored; None for `LIT_TRANSFER_CACHE`, else the user's folder of caches.
        """
        self.backbone = backbone
        self._options = Options(views, dtype, fast, cache_folder() if folder is None else Path(folder))
        self._run: CachedRun | FastRun | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stand between the loops and their loaders.

        Raises:
            TypeError: The strategy is not known to leave the modules whole.
            FileNotFoundError: Compiling was asked for, and there is no C++ compiler.
        """
        self.teardown(trainer, pl_module, stage)
        if stage != "fit" or trainer.fast_dev_run:  # type: ignore[attr-defined]  # a connector of the Trainer sets it
            return
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            raise TypeError(
                f"FeatureCaching works on one device and with strategy='ddp'; got {type(trainer.strategy).__name__}."
            )
        if self._options.fast == "compile" and trainer.strategy.root_device.type == "cpu":
            check_compiler()
        kind = CachedRun if self._options.views else FastRun
        self._run = kind(trainer, pl_module, self.backbone, self._options)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Have the loaders asked for again."""
        if self._run is not None:
            self._run.begin()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the random numbers of the training; look at the front, as a resumed run may be past it."""
        if self._run is not None:
            if trainer.ckpt_path is None:  # what resumes puts its own numbers back
                self._run.settle()
            self._run.look(move=False)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop where the front does not stay as it is through this epoch, and go on at another one where that pays."""
        if self._run is not None:
            self._run.look(move=True)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Refuse to train on features what has begun to train since the epoch did.

        Raises:
            ValueError: Something of the front trains.
        """
        if self._run is not None:
            self._run.check()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave everything as it was found: Lightning does not call `teardown` then."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave everything as it was found."""
        if self._run is not None:
            self._run.remove()
        self._run = None
