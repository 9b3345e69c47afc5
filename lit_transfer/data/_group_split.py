"""Splits of samples that hang together in groups, and of samples of several kinds at once."""

from collections import Counter
from collections.abc import Hashable, Sequence

from lit_transfer.data._seeding import stable_hash

_ALL: Hashable = ("all",)  # the kind that every sample is of


def group_split(
    groups: Sequence[str], kinds: Sequence[Sequence[Hashable]], fractions: Sequence[float], *, seed: int, keep: bool
) -> list[list[int]]:
    """Cut samples into parts, groups whole, so that samples of each kind are cut in about the same proportion.

    Groups are taken in an order that the seed and their names give, each where it brings the part nearer to its share
    of the samples and of each kind. The order of the samples does not matter.

    Args:
        groups: Name of the group of each sample.
        kinds: What each sample is an example of, such as its labels; may be empty.
        fractions: Share of the samples that goes to each part, at least one group where it is above 0.
        seed: Another seed gives another split.
        keep: Whether the last part must have a sample of each kind; else it has where that costs nothing.

    Returns:
        Indices, ascending, of each part; and last of the rest, which has at least one group.

    Raises:
        ValueError: If there are fewer groups than parts, or none that can be given away.
    """
    counts: dict[str, Counter[Hashable]] = {name: Counter() for name in groups}
    for name, of in zip(groups, kinds, strict=True):
        counts[name].update([_ALL, *of])
    total = sum(counts.values(), Counter[Hashable]())
    needed = 1 + sum(fraction > 0 for fraction in fractions)
    if len(counts) < needed:
        raise ValueError(f"there are {len(counts)} group(s), too few for {needed} parts")
    rest = _Rest(sorted(counts, key=lambda name: stable_hash("split", seed, name)), counts, total.copy())
    part_of: dict[str, int] = {}
    for part, fraction in enumerate(fractions):
        if fraction:
            needed -= 1
            quota = {kind: fraction * count for kind, count in total.items()}
            part_of |= dict.fromkeys(rest.take(quota, leave=needed, keep=keep), part)
    parts: list[list[int]] = [[] for _ in range(len(fractions) + 1)]
    for index, name in enumerate(groups):
        parts[part_of.get(name, len(fractions))].append(index)
    return parts


class _Rest:
    """The groups that no part has yet."""

    def __init__(self, order: list[str], counts: dict[str, Counter[Hashable]], left: Counter[Hashable]) -> None:
        self.order, self.counts, self.left = order, counts, left

    def take(self, quota: dict[Hashable, float], *, leave: int, keep: bool) -> list[str]:
        """Take groups out for a part: by kinds first, then what its size lacks, and one at least."""
        taken: dict[str, None] = {}  # a set in order
        have: Counter[Hashable] = Counter()
        for by_kind in (True, False):
            for name in self.order:
                if len(self.order) - len(taken) <= leave:
                    break
                if name in taken or ((by_kind or keep) and self._is_last(name)):
                    continue
                if _nearer(self.counts[name] if by_kind else {_ALL: self.counts[name][_ALL]}, have, quota):
                    self._move(name, have)
                    taken[name] = None
        if not taken:
            free = [name for name in self.order if not (keep and self._is_last(name))]
            if not free:
                raise ValueError("each group has all samples of some class")
            smallest = min(free, key=lambda name: self.counts[name][_ALL])
            self._move(smallest, have)
            taken[smallest] = None
        self.order = [name for name in self.order if name not in taken]
        return list(taken)

    def _is_last(self, name: str) -> bool:
        return any(self.left[kind] == count for kind, count in self.counts[name].items() if kind is not _ALL)

    def _move(self, name: str, have: Counter[Hashable]) -> None:
        have.update(self.counts[name])
        self.left.subtract(self.counts[name])


def _nearer(group: dict[Hashable, int], have: Counter[Hashable], quota: dict[Hashable, float]) -> bool:
    change = 0.0
    for kind, count in group.items():
        change += abs(have[kind] + count - quota[kind]) - abs(have[kind] - quota[kind])
    return change < 0
