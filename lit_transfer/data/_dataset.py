"""Labelled images as a torch dataset."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lit_transfer.data._seeding import seeded


class LabelledImages(Dataset[tuple[Tensor, Any]]):
    """Images with their targets; attributes are named as in torchvision's ImageFolder.

    Attributes:
        classes: Names of the classes; not there where the targets are no classes, and so the next.
        class_to_idx: Name to number.
        samples: (what `read` takes, target) for each image.
        targets: Target of each image: the number of its class, or a tuple of numbers.
    """

    def __init__(
        self,
        samples: Sequence[tuple[Any, Any]],
        classes: Sequence[str] | None,
        *,
        read: Callable[[Any], Tensor],
        transform: Callable[[Tensor], Tensor],
        seed: int | None = None,
    ) -> None:
        """Remember where images come from.

        Args:
            samples: (what `read` takes, target) for each image; a target is the number of a class, or a tuple of
                numbers. Tuples and not tensors: each of those costs a file handle on the way to a worker.
            classes: Names of the classes; None where the targets are tuples.
            read: Gives the pixels of an image, uint8 (C, H, W).
            transform: Makes of these a float tensor (C, H, W).
            seed: What the transform draws at random from torch, Python or numpy is a function of this, the epoch and
                the index; None where it draws nothing.
        """
        self.samples = list(samples)
        if classes is not None:
            self.classes = list(classes)
            self.class_to_idx = {name: number for number, name in enumerate(self.classes)}
        self.targets = [target for _, target in self.samples]
        self.read, self.transform, self.seed = read, transform, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, Any]:
        """Give an image and its class, or its numbers as a float tensor, for an index (epoch 0) or (index, epoch)."""
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        item, target = self.samples[index]
        if isinstance(target, tuple):
            target = torch.tensor(target, dtype=torch.float32)
        with nullcontext() if self.seed is None else seeded("augment", self.seed, epoch, index):
            return self.transform(self.read(item)), target
