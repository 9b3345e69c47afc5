"""What the datamodules of image files share: how a file is read, resized, augmented and kept decoded."""

import os
from abc import ABC
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn
from torchvision.transforms import v2

from lit_transfer.backbones import Preprocessing
from lit_transfer.data._images import read_pixels
from lit_transfer.data._kept import KeptPixels
from lit_transfer.data._labelled_image_data import LabelledImageData
from lit_transfer.data._sampler import Sampling
from lit_transfer.data._scan import Split
from lit_transfer.data._split import check_fractions
from lit_transfer.data._transforms import Augment

Member = TypeVar("Member")


class ImageFileData(LabelledImageData, ABC):
    """Base of the datamodules whose samples are (path of a file, target), with splits that are found or made."""

    root: Path

    def __init__(
        self,
        batch_size: int,
        *,
        augment: Augment,
        sampling: Sampling,
        image_size: int | None,
        val_fraction: float,
        test_fraction: float,
        seed: int,
        num_workers: int | None,
        pin_memory: bool | None,
        persistent_workers: bool | None,
        verify: bool,
        keep_decoded: bool,
    ) -> None:
        check_fractions(val_fraction, test_fraction)
        if image_size is not None and image_size < 1:
            raise ValueError(f"data.image_size is in pixels, at least 1; got {image_size}.")
        super().__init__(
            batch_size,
            augment=augment,
            sampling=sampling,
            seed=seed,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=persistent_workers,
        )
        self.image_size, self.verify, self.keep_decoded = image_size, verify, keep_decoded
        self.val_fraction, self.test_fraction = val_fraction, test_fraction

    def fill_splits(
        self,
        splits: dict[Split, list[Member]],
        cut: Callable[[list[Member], dict[Split, float]], list[list[int]]],
        of: str,
    ) -> tuple[dict[Split, list[Member]], list[str]]:
        """Take missing splits out of train, and say so.

        Args:
            splits: What was found, train at least.
            cut: Gives places in train for each of the wanted splits and the rest, from train and the shares wanted.
            of: What the shares are shares of, in words.

        Raises:
            ValueError: If test images are asked for out of train where there are some.
        """
        if self.test_fraction and "test" in splits:
            raise ValueError(
                f"data.test_fraction={self.test_fraction} asks for test images out of train, but the data holds "
                f"{len(splits['test'])} of them: set it to 0, or take those away."
            )
        fractions: dict[Split, float] = {"test": self.test_fraction, "val": self.val_fraction}
        wanted = {split: share for split, share in fractions.items() if share and split not in splits}
        if not wanted:
            return splits, []
        train = splits["train"]
        *parts, rest = cut(train, wanted)
        made = {split: [train[i] for i in part] for split, part in zip(wanted, parts, strict=True)}
        notes = [f"{split} is {share:.0%} of {of} (seed {self.seed})" for split, share in wanted.items()]
        return {**splits, **made, "train": [train[i] for i in rest]}, notes

    def name_of(self, item: Path) -> str:
        """Name a file by its path below the root."""
        return Path(os.path.relpath(item, self.root)).as_posix()

    def reader(self, mode: str) -> Callable[[Any], Tensor]:
        """Make what reads a file."""
        read = partial(read_pixels, mode=mode)
        return KeptPixels(read, self.preprocessing) if self.keep_decoded else read

    def fit_preprocessing(self, preprocessing: Preprocessing) -> Preprocessing:
        """Put in the image size that was asked for."""
        return preprocessing.adapted(input_size=self.image_size)

    def default_augmentation(self, preprocessing: Preprocessing) -> Sequence[nn.Module]:
        """Cut out a part of moderate size, since a pretrained network learns from few epochs, and flip."""
        interpolation = v2.InterpolationMode(preprocessing.interpolation)
        part = v2.RandomResizedCrop(preprocessing.crop, (0.35, 1.0), interpolation=interpolation, antialias=True)
        return [part, v2.RandomHorizontalFlip()]
