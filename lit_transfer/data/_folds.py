"""Folds for cross-validation: each sample is validated in exactly one, groups whole, kinds in proportion."""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any, cast

from lit_transfer.data._seeding import stable_hash
from lit_transfer.data._targets import Classes, Labels, Targets

_ALL: Hashable = ("all",)  # the kind that every sample is of
_BINS = 10  # numbers are cut in proportion by tenths of their order


def cut_folds(
    targets: Targets, values: Sequence[Any], groups: Sequence[str], folds: int, *, seed: int
) -> tuple[list[int], list[str]]:
    """Give each sample its fold, by what its target is, and tell what the user should know of that.

    Args:
        targets: What the targets are.
        values: Target of each sample.
        groups: Name of the group of each sample; its own name where it belongs to none.
        folds: How many.
        seed: Another seed gives another cut.

    Raises:
        ValueError: If there are too few folds, or images or groups for them, or of a class.
    """
    of = assign_folds(groups, kinds_of(targets, values), folds, seed=seed)
    return of, check_classes(targets, values, groups, folds)


def assign_folds(groups: Sequence[str], kinds: Sequence[Sequence[Hashable]], folds: int, *, seed: int) -> list[int]:
    """Give each sample its fold.

    Groups are placed one after the other, those first that hold most of a kind, each into the fold that lacks its
    kinds most (by squares, as scikit-learn's StratifiedGroupKFold does it). Without groups each class is in all folds
    alike, and so are their sizes, up to one. The order of the samples does not matter.

    Args:
        groups: Name of the group of each sample; its own name where it belongs to none.
        kinds: What each sample is an example of, such as its class or its labels; may be empty.
        folds: How many.
        seed: Another seed gives another cut.

    Returns:
        Number of the fold of each sample, from 0.

    Raises:
        ValueError: If there are fewer than two folds, or fewer groups than folds.
    """
    if folds < 2:
        raise ValueError(f"folds={folds}: cross-validation needs at least two.")
    counts: dict[str, Counter[Hashable]] = {name: Counter() for name in groups}
    for name, of in zip(groups, kinds, strict=True):
        counts[name].update([_ALL, *of])
    if len(counts) < folds:
        raise ValueError(f"folds={folds}: there are only {len(counts)} images or groups to cut. Give fewer folds.")
    total = sum(counts.values(), Counter[Hashable]())
    largest = {name: max(count / total[kind] for kind, count in of.items()) for name, of in counts.items()}
    have: list[Counter[Hashable]] = [Counter() for _ in range(folds)]
    fold_of: dict[str, int] = {}
    for name in sorted(counts, key=lambda name: (-largest[name], stable_hash("fold", seed, name))):
        costs = [_cost(counts[name], held, total) for held in have]
        fold_of[name] = costs.index(min(costs))
        have[fold_of[name]].update(counts[name])
    return [fold_of[name] for name in groups]


def _cost(group: Counter[Hashable], have: Counter[Hashable], total: Counter[Hashable]) -> float:
    """How much the sum of squared shares would grow; it is smallest where all folds have the same share."""
    return sum(((have[kind] + count) ** 2 - have[kind] ** 2) / total[kind] ** 2 for kind, count in group.items())


def kinds_of(targets: Targets, values: Sequence[Any]) -> list[list[Hashable]]:
    """Say what each sample is an example of: its class, its labels, or for each number its tenth of the order."""
    if isinstance(targets, Classes):
        return [[value] for value in values]
    if isinstance(targets, Labels):
        return [[place for place, holds in enumerate(value) if holds] for value in values]
    kinds: list[list[Hashable]] = [[] for _ in values]
    for column, numbers in enumerate(zip(*values, strict=True)):
        order = sorted(range(len(numbers)), key=numbers.__getitem__)
        first = {numbers[index]: place for place, index in reversed(list(enumerate(order)))}  # equal numbers, one bin
        for index, number in enumerate(numbers):
            kinds[index].append((column, _BINS * first[number] // len(numbers)))
    return kinds


def check_classes(targets: Targets, values: Sequence[Any], groups: Sequence[str], folds: int) -> list[str]:
    """Refuse classes that would be missing in some fold's validation, and tell of labels that are.

    Raises:
        ValueError: Names the class, how often it is there, and the mend.
    """
    if not isinstance(targets, Classes | Labels):
        return []
    holders: list[set[str]] = [set() for _ in targets.names]
    for group, kinds in zip(groups, kinds_of(targets, values), strict=True):
        for kind in kinds:
            holders[cast("int", kind)].add(group)
    few = {name: len(found) for name, found in zip(targets.names, holders, strict=True) if len(found) < folds}
    if isinstance(targets, Labels):
        return [f"in fewer images or groups than there are folds: {', '.join(few)}"] if few else []
    for name, count in few.items():
        mend = f"Give at most {count} folds" if count > 1 else "Add images"
        raise ValueError(
            f"folds={folds}: class {name!r} is in {count} image(s) or group(s) only, so that not every fold has one. "
            f"{mend}, or leave the class out."
        )
    return []
