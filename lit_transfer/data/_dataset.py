"""Labelled images as a torch dataset."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from lit_transfer.data._seeding import seeded


class LabelledImages(Dataset[tuple[Tensor, int]]):
    """Images with the number of their class; attributes are named as in torchvision's ImageFolder.

    Attributes:
        classes: Names of the classes.
        class_to_idx: Name to number.
        samples: (what `read` takes, number of the class) for each image.
        targets: Number of the class of each image.
    """

    def __init__(
        self,
        samples: Sequence[tuple[Any, int]],
        classes: Sequence[str],
        *,
        read: Callable[[Any], Tensor],
        transform: Callable[[Tensor], Tensor],
        seed: int | None = None,
    ) -> None:
        """Remember where images come from.

        Args:
            samples: (what `read` takes, number of the class) for each image.
            classes: Names of the classes.
            read: Gives the pixels of an image, uint8 (C, H, W).
            transform: Makes of these a float tensor (C, H, W).
            seed: What the transform draws at random from torch, Python or numpy is a function of this, the epoch and
                the index; None where it draws nothing.
        """
        self.samples = list(samples)
        self.classes = list(classes)
        self.class_to_idx = {name: number for number, name in enumerate(self.classes)}
        self.targets = [target for _, target in self.samples]
        self.read, self.transform, self.seed = read, transform, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int]:
        """Give an image and its class, for an index (epoch 0) or a pair of index and epoch."""
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        item, target = self.samples[index]
        with nullcontext() if self.seed is None else seeded("augment", self.seed, epoch, index):
            return self.transform(self.read(item)), target
