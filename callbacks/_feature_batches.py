"""Batches of chosen samples, as a loader would give them, with the samples beside them."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import TreeSpec
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from lit_transfer.callbacks._cached_loaders import with_attributes
from lit_transfer.features import split_sample

__all__ = ["Chosen", "Parts"]


@dataclass(frozen=True)
class _WithSamples:
    """Collates as before and gives the samples too or, where it is known which leaf is the image, the rest of each."""

    collate: Callable[[Any], Any]
    structure: TreeSpec | None
    image: int

    def __call__(self, samples: Sequence[Any]) -> tuple[list[Any], Any]:
        kept = list(samples)
        if self.structure is not None:
            kept = [split_sample(sample, self.structure, self.image) for sample in samples]
        return kept, self.collate(samples)


class Chosen:
    """Reads chosen samples of a loader's dataset, with its workers and its collate function.

    Attributes:
        length: Samples of the dataset.
        batch_size: Samples in a batch of the loader.
        collate: Its collate function.
        by_epoch: Whether its sampler asks for pairs of index and epoch, as those of this library do.
        in_order: Whether it goes through its samples in order and leaves none out.
    """

    def __init__(self, loader: DataLoader[Any], name: str) -> None:
        """Look at a loader; its samplers do not move on by this.

        Args:
            loader: The loader.
            name: What to call it in errors.

        Raises:
            ValueError: Its samples have no index.
        """
        dataset, sampler = loader.dataset, _sampler(loader)
        if sampler is None or isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise ValueError(
                f"The {name} samples cannot be cached: expected a DataLoader that makes batches of a dataset with a "
                f"length, which is asked by index; its dataset is a {type(dataset).__name__}."
            )
        self._loader, self.collate, self.length = loader, loader.collate_fn, len(dataset)
        # torch's own samplers give indices. Another one is asked, and a copy of it, which may move on.
        own = type(sampler).__module__.startswith("torch.") and loader.batch_size is not None
        first: Any = 0 if own else next(iter(copy.copy(sampler)), 0)
        batch = first if isinstance(first, list) else [first]
        self.batch_size: int = loader.batch_size or len(batch)
        self.by_epoch = isinstance(batch[0], tuple) and len(batch[0]) == 2
        if not self.by_epoch and not hasattr(batch[0], "__index__"):
            raise ValueError(f"The {name} sampler gives {batch[0]!r}: expected indices, to cache features by them.")
        self.in_order = type(loader.sampler) is SequentialSampler and own and not loader.drop_last

    def __call__(
        self,
        keys: Iterable[tuple[Sequence[int], int]],
        *,
        generator: torch.Generator,
        structure: TreeSpec | None = None,
        image: int = 0,
    ) -> Iterator[tuple[list[Any], Any]]:
        """Yield (samples, batch) for each key.

        Args:
            keys: The indices of each batch, and the epoch for which it is asked, where the sampler asks for one.
            generator: Seeds the workers.
            structure: How a sample is nested: then what else is in each is given as JSON, without the image.
            image: Which leaf of it is the image.
        """
        reader = with_attributes(
            self._loader,
            batch_sampler=_Keys(keys, by_epoch=self.by_epoch),
            collate_fn=_WithSamples(self.collate, structure, image),
            generator=generator,
            persistent_workers=False,
        )
        # A subclass may have an iterator that keeps its place in the training.
        yield from DataLoader.__iter__(reader)


def _sampler(loader: DataLoader[Any]) -> Any:
    """Return what decides on the order: the batch sampler if it is not torch's, else the sampler; None for neither."""
    return loader.sampler if type(loader.batch_sampler) is BatchSampler else loader.batch_sampler


@dataclass(frozen=True)
class _Keys:
    """What a dataset is asked for, batch by batch, once."""

    keys: Iterable[tuple[Sequence[int], int]]
    by_epoch: bool

    def __iter__(self) -> Iterator[list[Any]]:
        for batch, epoch in self.keys:
            yield [(index, epoch) for index in batch] if self.by_epoch else list(batch)


@dataclass(frozen=True)
class Parts(Sequence[list[int]]):
    """The indices of a dataset in batches of one size, made when they are asked for: there may be many.

    Attributes:
        length: How many indices there are.
        size: Samples in a batch.
        pad: Whether the last one is filled up from the start, so that all are computed in batches of one size.
    """

    length: int
    size: int
    pad: bool

    def __len__(self) -> int:
        return math.ceil(self.length / self.size)

    def __getitem__(self, number: Any) -> Any:
        start = self.size * range(len(self))[number]
        end = start + self.size if self.pad else min(start + self.size, self.length)
        return [index % self.length for index in range(start, end)]
