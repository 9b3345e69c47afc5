"""The order of the training samples, a pure function of seed and epoch, shared out among the processes."""

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import cycle, islice
from typing import Any, Literal

import torch
from torch import Tensor, distributed
from torch.utils.data.distributed import DistributedSampler

from lit_transfer.data._seeding import stable_hash

Sampling = Literal["shuffle", "balanced"]
# Beyond the epochs of any run: what is added for each time that a sample came before in the same epoch. It is odd, so
# that a sample that comes again gets another one of two stored views.
_AGAIN = (1 << 32) + 1


def epoch_order(
    size: int, *, seed: int, epoch: int, shuffle: bool = True, members: Sequence[Sequence[int]] | None = None
) -> list[int]:
    """Give the order in which an epoch visits `size` samples.

    Args:
        size: Number of samples.
        seed: Seed of the order.
        epoch: Number of the epoch.
        shuffle: Whether the order is a random one.
        members: The samples of each class, where equally many of each are visited.
    """
    if not shuffle:
        return list(range(size))
    generator = torch.Generator().manual_seed(stable_hash("order", seed, epoch))
    order: list[int] = torch.randperm(size, generator=generator).tolist()
    if members is None:
        return order
    drawn = _equally_many(size, members, generator)
    return [drawn[place] for place in order]


def _equally_many(size: int, members: Sequence[Sequence[int]], generator: torch.Generator) -> list[int]:
    """Draw equally many samples of each class, none of them once more before all of its class have come."""
    share, left = divmod(size, len(members))
    drawn: list[int] = []
    for place, own in zip(torch.randperm(len(members), generator=generator).tolist(), members, strict=True):
        count = share + (place < left)  # what does not divide goes to classes of the epoch's own choice
        rounds = [torch.randperm(len(own), generator=generator) for _ in range(-(-count // len(own)))]
        drawn += [own[number] for number in torch.cat(rounds)[:count].tolist()]
    return drawn


def by_class(classes: Iterable[Hashable]) -> list[list[int]]:
    """Give the samples of each class that some sample has."""
    members: dict[Hashable, list[int]] = {}
    for sample, one in enumerate(classes):
        key = one.item() if isinstance(one, Tensor) else one  # tensors hash by identity
        members.setdefault(key, []).append(sample)
    return list(members.values())


def share_size(size: int, batch_size: int, *, world_size: int, start: int = 0) -> int:
    """Give the number of samples that each process visits in an epoch, or in what is left of it after `start` samples.

    It is the same for all: where the samples do not divide, some come twice. A last batch that would hold a single
    sample is left out, as normalisation layers cannot train on it; the order changes each epoch, so no sample is left
    out for good.
    """
    share = max(0, -(-(size - start) // world_size))
    return share - 1 if share % batch_size == 1 and -(-size // world_size) > 1 else share


class EpochSampler(DistributedSampler[tuple[int, int]]):
    """Yields (index, epoch), so that a dataset in a worker knows the epoch without being told in any other way.

    An epoch may be entered in its middle, at a number of samples: it holds for any number of processes.

    It is a DistributedSampler because Lightning replaces every other sampler when there are several processes, unless
    the user says `use_distributed_sampler=False`.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        balance: Sequence[Hashable] | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        """Remember what the order depends on.

        Args:
            size: Number of samples of the dataset.
            batch_size: Samples of one batch on one process.
            seed: Seed of the order.
            shuffle: Whether the order is a random one.
            balance: The class of each sample: an epoch then visits equally many of each class, and as many as there
                are in all. None to visit each sample once.
            rank: Number of this process; None to ask torch.distributed when an epoch begins.
            world_size: Number of processes; None likewise.

        Raises:
            ValueError: There is not one class for each sample, or the order is to be both balanced and not random.
        """
        if balance is not None and (len(balance) != size or not shuffle):
            wrong = "shuffle=False" if not shuffle else f"{len(balance)} classes for {size} samples"
            raise ValueError(f"balance needs the class of each sample, and a random order; got {wrong}.")
        indices: Any = range(size)  # has a length, and nothing else is asked of it
        super().__init__(indices, num_replicas=1, rank=0, shuffle=shuffle, seed=seed)
        self.size, self.batch_size = size, batch_size
        self._members = None if balance is None else by_class(balance)
        self._rank, self._world_size = rank, world_size
        self._resume: tuple[int, int] | None = None

    @property
    def balanced(self) -> bool:
        """Whether an epoch visits equally many samples of each class."""
        return self._members is not None

    @property
    def world_size(self) -> int:
        """Number of processes that share an epoch."""
        return self._world_size or (distributed.get_world_size() if distributed.is_initialized() else 1)

    def resume(self, epoch: int, samples: int) -> None:
        """Let the next iteration, if it is one of this epoch, begin after so many samples of all processes together."""
        self._resume = epoch, samples

    @property
    def start(self) -> int:
        """Samples of the epoch, of all processes together, that the next iteration leaves out."""
        return self._resume[1] if self._resume is not None and self._resume[0] == self.epoch else 0

    @property
    def left(self) -> int:
        """Samples that the next iteration yields."""
        return share_size(self.size, self.batch_size, world_size=self.world_size, start=self.start)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, start, left = self.epoch, self.start, self.left
        self._resume = None
        rank = self._rank if self._rank is not None else distributed.get_rank() if distributed.is_initialized() else 0
        order = epoch_order(self.size, seed=self.seed, epoch=epoch, shuffle=self.shuffle, members=self._members)
        mine = islice(cycle(self._keys(order, epoch)), start + rank, None, self.world_size)
        return islice(mine, left)

    def _keys(self, order: list[int], epoch: int) -> Iterator[tuple[int, int]]:
        """Give pairs of index and epoch; a sample that comes again gets a number of its own, to be augmented anew."""
        if not self.balanced:
            yield from ((index, epoch) for index in order)
            return
        times: Counter[int] = Counter()
        for index in order:
            yield index, epoch + times[index] * _AGAIN
            times[index] += 1

    def __len__(self) -> int:
        return share_size(self.size, self.batch_size, world_size=self.world_size)
