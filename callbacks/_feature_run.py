"""One fit in which features take the place of images, as long as their front stays frozen, and move with the front."""

import math
import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from lit_transfer.callbacks._cached_loaders import CachedLoaders, Split
from lit_transfer.callbacks._feature_filling import ONE_RUN, cached_samples
from lit_transfer.callbacks._feature_front import Front, find_front, follow_schedules
from lit_transfer.callbacks._feature_options import Options
from lit_transfer.features import CachedSamples, Serving

__all__ = ["CachedRun"]


class CachedRun:
    """Serves stored features in a fit.

    Attributes:
        front: What is frozen and was looked at last; None if its first stage trains.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, backbone: str, options: Options) -> None:
        """Stand between the loops and their loaders.

        Args:
            trainer: The trainer that fits.
            module: Its module.
            backbone: Dotted name of the backbone in it.
            options: What the user chose.
        """
        self.front: Front | None = None
        self._trainer, self._module, self._name, self._options = trainer, module, backbone, options
        self._serving: Serving | None = None
        self._frozen: list[bool] | None = None  # of each parameter of the backbone, when the front was found
        self._moved = False
        self._refused: str | None = None
        self._for_this_run: set[Path] = set()  # entries that no other run can recognise
        self._loaders = CachedLoaders(trainer, self._dataset, workers=not options.fast)

    def begin(self) -> None:
        """Have the loaders asked for again: weights are there."""
        self._loaders.begin()

    def settle(self) -> None:
        """Go on with the random numbers of the training."""
        self._loaders.settle()

    def _dataset(self, split: Split, number: int, loader: DataLoader[Any]) -> CachedSamples | None:
        """Make the dataset for a loader that a loop has asked for."""
        follow_schedules(self._trainer, self._module)
        if self._frozen is None:
            self._find()
            if self.front is None:
                rank_zero_info(f"FeatureCaching: the first stage of {self._name} trains, so nothing is cached.")
        if self.front is None or self.front.trains():
            return None
        try:
            return self._samples(self.front, split, number, loader)
        except Exception as error:
            if not self._moved:
                raise
            self._refused = " ".join(str(error).split())  # training goes on: images are always right
            return None

    def _samples(self, front: Front, split: Split, number: int, loader: DataLoader[Any]) -> CachedSamples | None:
        fill = not self._moved or front.holds(self._trainer, self._paying())
        made = cached_samples(self._trainer, front, self._options, split, number, loader, fill=fill)
        if made is None:
            return None
        samples, outline = made
        if samples.entry.path.name.startswith(ONE_RUN):
            self._for_this_run.add(samples.entry.path)
        if self._serving is None:
            self._serving = Serving(front.backbone, front.boundary, outline)
        else:
            self._serving.add(outline)
        return samples

    def look(self, *, move: bool) -> None:
        """Stop where the front does not stay as it is through this epoch, and serve another one where that pays.

        Args:
            move: Whether an epoch starts, at which another front may be served.
        """
        if self._frozen is None:
            return
        if self.front is not None:
            self.front.copies.clear()  # the loaders that were asked for together are filled
        follow_schedules(self._trainer, self._module)
        serves = self._serving is not None and self.front is not None
        reason = self.front.change(self._trainer) if serves and self.front is not None else None
        if move and self._is_frozen() != self._frozen:
            self._move(reason)
        elif reason is not None:
            self._serve(None)
            self._tell(reason, "")

    def _move(self, reason: str | None) -> None:
        old = self.front if self._serving is not None else None
        self._find()
        new, epochs = self.front, self._paying()
        blocked = new.change(self._trainer) if new is not None else f"the first stage of {self._name} trains"
        pays = new is not None and blocked is None and new.holds(self._trainer, epochs)
        if reason is None and old is not None and (not pays or new is None or new.boundary == old.boundary):
            self.front = old  # what is served is right as it is
            if new is not None and new.boundary != old.boundary:
                self._tell(f"{new.where} is frozen for less than {epochs} epochs", "")
            return
        self._moved, self._refused = True, None
        self._serve(new if blocked is None else None)
        if new is not None and blocked is None and not pays:
            blocked = f"{new.where} stays frozen for less than {epochs} epochs, too few to compute what is not stored"
        self._tell(reason or "another part is frozen", self._refused or blocked or "")

    def _serve(self, front: Front | None) -> None:
        if self._serving is not None:
            self._serving.remove()
        self._serving, self.front = None, front
        self._loaders.move()

    def _tell(self, reason: str, why: str) -> None:
        now = f"{self._name} takes images{f' ({why})' if why else ''}"
        if self._serving is not None and self.front is not None:
            but = f", but not to all loaders: {self._refused}" if self._refused else ""
            now = f"features of {self.front.where} are served{but}"
        rank_zero_info(f"FeatureCaching: {reason}: from epoch {self._trainer.current_epoch} on {now}.")

    def check(self) -> None:
        """Refuse to train on features what has begun to train since the epoch did.

        Raises:
            ValueError: Something of the front trains.
        """
        if self._serving is not None and self.front is not None and (trains := self.front.trains()):
            raise ValueError(
                f"{trains[0]} was unfrozen after FeatureCaching had looked at the start of epoch "
                f"{self._trainer.current_epoch}, whose batches hold its features. List FeatureCaching behind what "
                "unfreezes."
            )

    def _find(self) -> None:
        self.front = find_front(self._module, self._name)
        self._frozen = self._is_frozen()

    def _is_frozen(self) -> list[bool]:
        backbone = self._module.get_submodule(self._name)
        return [not parameter.requires_grad for parameter in backbone.parameters()]

    def _paying(self) -> int:
        """Return for how many epochs a front must hold so that it pays to compute its features: a fill takes one."""
        loader, batches = self._trainer.train_dataloader, self._trainer.num_training_batches
        share = len(loader) / batches if isinstance(loader, DataLoader) and 0 < batches < math.inf else 1.0
        return 1 + math.ceil(self._options.views * max(1.0, share))

    def remove(self) -> None:
        """Leave everything as it was found."""
        if self._serving is not None:
            self._serving.remove()
        self._loaders.remove()
        for path in self._for_this_run if self._trainer.is_global_zero else ():
            shutil.rmtree(path, ignore_errors=True)
        self._serving = self.front = None
        self._for_this_run = set()
