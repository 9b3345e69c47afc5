"""The order of the training samples, a pure function of seed and epoch, shared out among the processes."""

from collections.abc import Callable, Iterator
from itertools import cycle, islice
from typing import Any

import torch
from torch.utils.data.distributed import DistributedSampler

from lit_transfer.data._seeding import stable_hash


def epoch_order(size: int, *, seed: int, epoch: int) -> list[int]:
    """Give the order in which an epoch visits `size` samples."""
    generator = torch.Generator().manual_seed(stable_hash("order", seed, epoch))
    order: list[int] = torch.randperm(size, generator=generator).tolist()
    return order


def share_size(size: int, batch_size: int, *, world_size: int) -> int:
    """Give the number of samples that each process visits in an epoch.

    It is the same for all: where the samples do not divide, some come twice. A last batch that would hold a single
    sample is left out, as normalisation layers cannot train on it; the order changes each epoch, so no sample is left
    out for good.
    """
    share = -(-size // world_size)
    return share - 1 if share > 1 and share % batch_size == 1 else share


class EpochSampler(DistributedSampler[tuple[int, int]]):
    """Yields (index, epoch), so that a dataset in a worker knows the epoch without being told in any other way.

    It is a DistributedSampler because Lightning replaces every other sampler when there are several processes, unless
    the user says `use_distributed_sampler=False`.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        epoch: Callable[[], int] | None = None,
    ) -> None:
        """Remember what the order depends on.

        Args:
            size: Number of samples of the dataset.
            batch_size: Samples of one batch on one process.
            seed: Seed of the order.
            rank: Number of this process.
            world_size: Number of processes.
            epoch: Asked at the start of every iteration; None to go by `set_epoch`. Lightning makes the first iterator
                of a resumed run before it calls `set_epoch`, so a value that is pushed would come too late.
        """
        indices: Any = range(size)  # has a length, and nothing else is asked of it
        super().__init__(indices, num_replicas=world_size, rank=rank, seed=seed)
        self._size, self.ask_epoch = size, epoch
        self._share = share_size(size, batch_size, world_size=world_size)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.ask_epoch() if self.ask_epoch else self.epoch
        order = cycle(epoch_order(self._size, seed=self.seed, epoch=epoch))
        mine = islice(order, self.rank, None, self.num_replicas)
        return ((index, epoch) for index in islice(mine, self._share))

    def __len__(self) -> int:
        return self._share
