"""A DataLoader that keeps its place: a run goes on mid-epoch with the very batches that were to come."""

from collections.abc import Hashable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Dataset, Sampler

from lit_transfer.data._sampler import EpochSampler
from lit_transfer.data._seeding import seeded

T = TypeVar("T")


class SeededSamples(Dataset[T]):
    """A dataset whose samples draw what they draw at random as a function of seed, epoch and index.

    Attributes:
        dataset: The dataset that is asked.
    """

    def __init__(self, dataset: Dataset[T], seed: int) -> None:
        """Wrap a dataset that is asked by index and has a length."""
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # torch does not type the length of a Dataset

    def __getitem__(self, key: int | tuple[int, int]) -> T:
        """Give a sample, for an index (epoch 0) or a pair of index and epoch."""
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        with seeded("augment", self.seed, epoch, index):
            return self.dataset[index]


class ResumableLoader(DataLoader[T]):
    """A DataLoader for training that resumes exactly, in the middle of an epoch and with any number of workers.

    The order of an epoch is a function of seed and epoch. What the dataset draws at random from torch, Python or numpy
    is a function of seed, epoch and index, so nothing depends on which worker reads a sample. The place is kept in
    samples of all processes together, so it holds for another batch size and another number of processes too.
    Lightning writes it into every checkpoint and gives it back.

    Example:
        ```python
        loader = ResumableLoader(my_dataset, 32, num_workers=4)
        trainer.fit(model, loader, ckpt_path="last")
        ```
    """

    def __init__(
        self,
        dataset: Dataset[T],
        batch_size: int = 1,
        *,
        seed: int = 0,
        shuffle: bool = True,
        seed_samples: bool = True,
        balance: Sequence[Hashable] | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        sampler: Sampler[Any] | None = None,
        **options: Any,
    ) -> None:
        """Make the order and wrap the dataset.

        Args:
            dataset: A dataset that is asked by index and has a length.
            batch_size: Samples of one batch on one process.
            seed: Seed of the order and of what the samples draw at random.
            shuffle: Whether each epoch has a random order of its own.
            seed_samples: Seed Python, numpy and torch before each sample. False for a dataset that sees to it itself:
                it is asked for pairs of index and epoch.
            balance: The class of each sample, for an epoch that visits equally many of each class; a small class
                comes several times then, and of a large one a part, another one each epoch. None to visit each
                sample once.
            rank: Number of this process; None to ask torch.distributed when an epoch begins.
            world_size: Number of processes that share an epoch; None likewise.
            sampler: Takes the place of the own order; the loader then keeps no place.
            options: As for DataLoader.

        Raises:
            ValueError: `balance` has not one class for each sample, or comes with `shuffle=False` or a sampler.
        """
        if sampler is not None and balance is not None:
            raise ValueError("balance decides on the order, and so does the sampler: leave one of them out.")
        if sampler is None:
            size = len(dataset)  # type: ignore[arg-type]  # torch does not type the length of a Dataset
            share = {"rank": rank, "world_size": world_size}
            sampler = EpochSampler(size, batch_size, seed=seed, shuffle=shuffle, balance=balance, **share)
        # A loader otherwise draws from torch's generator and so changes what the training draws next.
        options.setdefault("generator", torch.Generator().manual_seed(seed))
        dataset = SeededSamples(dataset, seed) if seed_samples else dataset
        super().__init__(dataset, batch_size, sampler=sampler, **options)
        self._place = 0, 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch promises an iterator of a private class
        # A generator: nothing is asked and no worker starts before the first batch is wanted. Lightning makes the first
        # iterator of a resumed run before it has restored the epoch and given back the place.
        order = self.sampler
        if not isinstance(order, EpochSampler):
            yield from super().__iter__()
            return
        epoch, samples = order.epoch, order.start
        for batch in super().__iter__():
            samples += order.batch_size * order.world_size
            self._place = epoch, samples
            yield batch

    def batches_done(self, epoch: int) -> int:
        """Count the batches, of this size and with this number of processes, that an epoch does not begin with."""
        order = self.sampler
        if not isinstance(order, EpochSampler):
            return 0
        order.set_epoch(epoch)
        left = order.left // order.batch_size if self.drop_last else -(-order.left // order.batch_size)
        return len(self) - left

    def state_dict(self) -> dict[str, int]:
        """Give the place: the epoch, and how many of its samples all processes together were given."""
        order = self.sampler
        if not isinstance(order, EpochSampler):
            return {}
        place = {"epoch": self._place[0], "samples": self._place[1], "size": order.size, "seed": order.seed}
        return place | ({"balanced": 1} if order.balanced else {})

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on at a place; other data, seed or sampling than before is told, as the order then is another one."""
        order = self.sampler
        if not isinstance(order, EpochSampler) or not state_dict:
            return
        for name, now in (("size", order.size), ("seed", order.seed), ("balanced", int(order.balanced))):
            if (before := state_dict.get(name, 0)) != now:
                rank_zero_warn(
                    f"The training data had {name} {before} when the checkpoint was written and has {now} "
                    "now: the epoch goes on after as many samples, but in another order than it began."
                )
        self._place = state_dict["epoch"], state_dict["samples"]
        order.resume(*self._place)
