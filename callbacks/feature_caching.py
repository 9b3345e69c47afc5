"""The frozen front of a backbone computed once: the callback that serves its features from then on."""

import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from lit_transfer.callbacks._cached_loaders import CachedLoaders, Split
from lit_transfer.callbacks._feature_filling import ONE_RUN, Options, cached_samples
from lit_transfer.callbacks._feature_front import Front, find_front, follow_schedules
from lit_transfer.features import CachedSamples, Serving, cache_folder

__all__ = ["FeatureCaching"]


class FeatureCaching(Callback):
    """Computes what a frozen front of the backbone gives once for each sample, and trains on that.

    The front is the whole backbone or its first stages, frozen by `FinetuningSchedule` or otherwise. Its output for
    each training and validation sample is stored; the loaders then give features in the place of images, and the
    backbone goes on from these, for any LightningModule whose step hands the batch's images to its backbone. When
    something of the front begins to train, images are used again; `validate`, `test` and `predict` use them anyway.

    In `setup` it goes between Lightning's loops and their loaders, for which `configure_optimizers` may ask. It fills
    the store when a loop asks after `on_fit_start`: weights and progress are restored then, and no iterator runs.
    """

    def __init__(
        self,
        backbone: str = "backbone",
        *,
        views: int = 1,
        dtype: Literal["float32", "bfloat16", "float16"] | None = None,
        fast: bool = True,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        """Choose what is stored.

        Args:
            backbone: Dotted name of the module that takes the images.
            views: How many augmented views of each training image are stored; each epoch draws among them. With 1,
                random augmentation is refused.
            dtype: In which dtype features are stored; None for the one in which they are computed. bfloat16 and float16
                take half the room and change each value by up to 1/256 and 1/2048 of it.
            fast: Compute features on a copy of the front made for inference, and take those of runs with another batch
                size: they differ by rounding, at most by 1e-4 of the largest. False: training is bitwise as without.
            folder: Where features are stored; None for `LIT_TRANSFER_CACHE`, else the user's folder of caches.
        """
        self.backbone = backbone
        self._options = Options(views, dtype, fast, cache_folder() if folder is None else Path(folder))
        self._loaders: CachedLoaders | None = None
        self._front: Front | None = None
        self._serving: Serving | None = None
        self._for_this_run: set[Path] = set()  # entries that no other run can recognise

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stand between the loops and their loaders.

        Raises:
            TypeError: The strategy is not known to leave the modules whole.
        """
        self.teardown(trainer, pl_module, stage)
        if stage != "fit" or trainer.fast_dev_run:  # type: ignore[attr-defined]  # a connector of the Trainer sets it
            return
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            raise TypeError(
                f"FeatureCaching works on one device and with strategy='ddp'; got {type(trainer.strategy).__name__}."
            )
        made = partial(self._dataset, trainer, pl_module)
        self._loaders = CachedLoaders(trainer, made, workers=not self._options.fast)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Have the loaders asked for again."""
        if self._loaders is not None:
            self._loaders.begin()

    def _dataset(
        self, trainer: Trainer, module: LightningModule, split: Split, number: int, loader: DataLoader[Any]
    ) -> CachedSamples | None:
        """Make the dataset for a loader that a loop has asked for."""
        follow_schedules(trainer, module)
        if self._front is None:
            self._front = find_front(module, self.backbone)
        if self._front is None:
            rank_zero_info(f"FeatureCaching: the first stage of {self.backbone} trains, so nothing is cached.")
            return None
        samples, outline = cached_samples(trainer, self._front, self._options, split, number, loader)
        if samples.entry.path.name.startswith(ONE_RUN):
            self._for_this_run.add(samples.entry.path)
        if self._serving is None:
            self._serving = Serving(self._front.backbone, self._front.boundary, outline)
        else:
            self._serving.add(outline)
        return samples

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the random numbers of the training; look at the front, as a resumed run may be past it."""
        if self._loaders is not None and trainer.ckpt_path is None:  # what resumes puts its own numbers back
            self._loaders.settle()
        self._look(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop where the front does not stay as it is through this epoch."""
        self._look(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Refuse to train on features what has begun to train since the epoch did.

        Raises:
            ValueError: Something of the front trains.
        """
        if self._serving is not None and self._front is not None and (trains := self._front.trains()):
            raise ValueError(
                f"{trains[0]} was unfrozen after FeatureCaching had looked at the start of epoch "
                f"{trainer.current_epoch}, whose batches hold its features. List FeatureCaching behind what unfreezes."
            )

    def _look(self, trainer: Trainer, module: LightningModule) -> None:
        if self._loaders is None or self._serving is None or self._front is None:
            return
        follow_schedules(trainer, module)
        if reason := self._front.change(trainer):
            rank_zero_info(
                f"FeatureCaching: {reason}: from epoch {trainer.current_epoch} on {self.backbone} takes images again."
            )
            self._serving.remove()
            self._serving = None
            self._loaders.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave everything as it was found: Lightning does not call `teardown` then."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave everything as it was found."""
        if self._serving is not None:
            self._serving.remove()
        if self._loaders is not None:
            self._loaders.remove()
        for path in self._for_this_run if trainer.is_global_zero else ():
            shutil.rmtree(path, ignore_errors=True)
        self._serving = self._front = self._loaders = None
        self._for_this_run = set()
