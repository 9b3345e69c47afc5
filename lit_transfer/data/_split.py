"""Splits of labelled samples, class by class."""

from collections import Counter
from collections.abc import Sequence

from lit_transfer.data._seeding import stable_hash


def stratified_split(
    keys: Sequence[str], targets: Sequence[int], fractions: Sequence[float], *, seed: int
) -> list[list[int]]:
    """Cut samples into parts so that each class is cut in the same proportion.

    A sample's place depends on the seed, its key and its class alone: neither the order of the samples nor other
    classes change it, and later additions move few.

    Args:
        keys: A unique name for each sample, such as its path below the dataset's folder.
        targets: The class of each sample.
        fractions: Share of each class that goes to each part, at least one sample where it is above 0.
        seed: Another seed gives another split.

    Returns:
        Indices, ascending, of each part; and last of the rest, which has at least one sample of each class.

    Raises:
        ValueError: If a class has fewer samples than there are parts to fill.
    """
    by_class: dict[int, list[int]] = {}
    for index in sorted(range(len(keys)), key=lambda i: stable_hash("split", seed, keys[i])):
        by_class.setdefault(targets[index], []).append(index)
    parts: list[list[int]] = [[] for _ in range(len(fractions) + 1)]
    for target, members in by_class.items():
        start = 0
        for part, size in zip(parts, _sizes(len(members), fractions, target), strict=True):
            part += members[start : start + size]
            start += size
    return [sorted(part) for part in parts]


def _sizes(count: int, fractions: Sequence[float], target: int) -> list[int]:
    """Give the number of samples of each part and of the rest, for a class of `count` samples."""
    needed = 1 + sum(fraction > 0 for fraction in fractions)
    if count < needed:
        raise ValueError(f"class {target} has {count} samples, too few for {needed} parts")
    sizes: list[int] = []
    for fraction in fractions:
        needed -= fraction > 0
        sizes.append(min(max(1, round(count * fraction)), count - sum(sizes) - needed) if fraction else 0)
    return [*sizes, count - sum(sizes)]


def check_enough(
    targets: Sequence[int], classes: Sequence[str], wanted: Sequence[str], where: str, other_way: str
) -> None:
    """Refuse classes with too few samples to take those of the wanted splits from.

    Raises:
        ValueError: Names the class, how many it has, and the mends.
    """
    counts = Counter(targets)
    for number, name in enumerate(classes):
        if counts[number] <= len(wanted):
            raise ValueError(
                f"class {name!r} in {where} has {counts[number]} training image(s): too few to take "
                f"{' and '.join(wanted)} images from. Expected at least {len(wanted) + 1}; add images or {other_way}, "
                f"or set data.{wanted[-1]}_fraction=0."
            )


def check_fractions(val_fraction: float, test_fraction: float) -> None:
    """Refuse shares that leave nothing to train on.

    Raises:
        ValueError: If a share is not in [0, 1), or both together reach 1.
    """
    for name, value in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 <= value < 1:
            raise ValueError(f"data.{name} is the share of each class, at least 0 and below 1; got {value}.")
    if val_fraction + test_fraction >= 1:
        raise ValueError(
            "data.val_fraction and data.test_fraction leave nothing to train on: expected a sum below 1, "
            f"got {val_fraction} + {test_fraction}."
        )
