"""Real handwritten digits that come with scikit-learn, as a datamodule: no download."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

from lit_transfer.backbones import Preprocessing
from lit_transfer.data._images import convert_image
from lit_transfer.data._labelled_image_data import Collection, LabelledImageData
from lit_transfer.data._scan import Split
from lit_transfer.data._seeding import stable_hash
from lit_transfer.data._split import check_fractions, stratified_split
from lit_transfer.data._targets import Classes
from lit_transfer.data._transforms import Augment, resize_to_crop

Sample = tuple[int, int]


class DigitsData(LabelledImageData):
    """The 1797 digits of 8 × 8 pixels in scikit-learn, any of the classes and any number of training images of each.

    Which images are for test, for validation and for training is a function of the seed alone, so results with other
    `classes` or `per_class` compare; fewer images per class are a part of more. See LabelledImageData for what `setup`
    sets.
    """

    def __init__(
        self,
        classes: Sequence[int] = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9),
        per_class: int | None = None,
        *,
        image_size: int = 32,
        batch_size: int = 32,
        augment: Augment = "default",
        val_fraction: float = 0.2,
        test_fraction: float = 0.2,
        seed: int = 0,
        num_workers: int | None = 0,
        pin_memory: bool | None = None,
        persistent_workers: bool | None = None,
    ) -> None:
        """Choose digits.

        Args:
            classes: Digits, at least two; they are numbered from 0 in this order.
            per_class: Training images of each class; None for all.
            image_size: Side in pixels to which the images are enlarged; some backbones take one size only, such as 224.
            batch_size: Images in a batch, on each device.
            augment: `"default"` turns, shifts and scales the training images a little; the others as in
                ImageFolderData.
            val_fraction: Share of each class for validation.
            test_fraction: Share of each class for test.
            seed: Of the split, the order and the augmentation.
            num_workers: Processes that load images; none are needed, as the images lie in memory.
            pin_memory: Load into page-locked memory; None for yes if there is CUDA.
            persistent_workers: Keep the processes from epoch to epoch; None for yes if there are any.
        """
        check_fractions(val_fraction, test_fraction)
        _check_classes(classes, per_class)
        if image_size < 1:
            raise ValueError(f"data.image_size is in pixels, at least 1; got {image_size}.")
        super().__init__(
            batch_size,
            augment=augment,
            seed=seed,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=persistent_workers,
        )
        self.classes, self.per_class, self.image_size = list(classes), per_class, image_size
        self.val_fraction, self.test_fraction = val_fraction, test_fraction

    def collect(self) -> Collection:
        """Load the digits and split them.

        Raises:
            ValueError: If a class has fewer training images than were asked for.
        """
        from sklearn.datasets import load_digits  # takes a second

        images, digits = load_digits(return_X_y=True)
        self._images = (images.reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)
        digits = digits.tolist()
        keys = [str(index) for index in range(len(digits))]
        test, val, train = stratified_split(keys, digits, [self.test_fraction, self.val_fraction], seed=self.seed)
        number = {digit: place for place, digit in enumerate(self.classes)}
        pools: dict[Split, list[int]] = {"train": self._few(train, digits), "val": val, "test": test}
        splits: dict[Split, list[Sample]] = {
            split: [(index, number[digits[index]]) for index in pool if digits[index] in number]
            for split, pool in pools.items()
            if pool
        }
        return Collection(Classes([str(digit) for digit in self.classes]), splits)

    def reader(self, mode: str) -> Callable[[Any], Tensor]:
        """Make what gives the pixels of a digit."""
        return partial(_read_digit, self._images, mode)

    def fit_preprocessing(self, preprocessing: Preprocessing) -> Preprocessing:
        """Enlarge the whole of the image."""
        return replace(preprocessing, resize=self.image_size, crop=self.image_size)

    def default_augmentation(self, preprocessing: Preprocessing) -> Sequence[nn.Module]:
        """Turn, shift and scale a little; no flip, which would make other signs of most digits."""
        interpolation = v2.InterpolationMode.BILINEAR
        moved = v2.RandomAffine(degrees=10, translate=(0.1, 0.1), scale=(0.9, 1.1), interpolation=interpolation)
        return [resize_to_crop(preprocessing), moved]

    def _few(self, train: list[int], digits: list[int]) -> list[int]:
        """Take the first few of each class, in an order that the seed gives."""
        if self.per_class is None:
            return train
        few: list[int] = []
        shuffled = sorted(train, key=lambda index: stable_hash("few", self.seed, index))
        for digit in self.classes:
            members = [index for index in shuffled if digits[index] == digit]
            if len(members) < self.per_class:
                raise ValueError(
                    f"data.per_class={self.per_class} asks for more training images than digit {digit} has: "
                    f"{len(members)}, with data.val_fraction={self.val_fraction} and "
                    f"data.test_fraction={self.test_fraction}."
                )
            few += members[: self.per_class]
        return sorted(few)


def _read_digit(images: npt.NDArray[np.uint8], mode: str, index: int) -> Tensor:
    pixels: Tensor = pil_to_tensor(convert_image(Image.fromarray(images[index]), mode))
    return pixels


def _check_classes(classes: Sequence[int], per_class: int | None) -> None:
    if len(classes) < 2 or len(set(classes)) < len(classes) or not set(classes) <= set(range(10)):
        raise ValueError(f"data.classes must be at least two different digits of 0 to 9; got {list(classes)}.")
    if per_class is not None and per_class < 1:
        raise ValueError(f"data.per_class must be at least 1, or None for all; got {per_class}.")
