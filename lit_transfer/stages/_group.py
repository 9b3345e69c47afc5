"""Which consecutive units make a stage."""

from __future__ import annotations

from collections.abc import Sequence

from lit_transfer.stages._units import Unit

__all__ = ["group_units"]

# A stage ends where the number of pixels or tokens changes by this factor. Halving both sides gives 4; borders that a
# convolution without padding cuts off, and class tokens, stay far below.
_CHANGE = 2.0


def group_units(units: Sequence[Unit]) -> list[list[Unit]]:
    """Group consecutive units into stages.

    A stage is what works at one resolution; the module that changes it begins the next stage. In the first of them,
    what comes before the first block (a unit with several weight matrices) is the stem. Where this gives fewer than
    three stages before pooling, as in a transformer whose resolution never changes, each unit is a stage.

    A unit without parameters belongs to what it follows, unless it changes the resolution. A stage holds at least one
    weight matrix: lone normalisations belong to what they follow.

    Args:
        units: In the order of use; the classifier left out.

    Returns:
        The groups in order; each unit in exactly one. Empty without units.
    """
    by_resolution = _with_matrices(_cut(units, every=False))
    if by_resolution:
        by_resolution[:1] = _split_stem(by_resolution[0])
    if sum(map(_is_spread, by_resolution)) >= 3:
        return by_resolution
    return _with_matrices(_cut(units, every=True))


def _cut(units: Sequence[Unit], *, every: bool) -> list[list[Unit]]:
    """Cut before each unit with parameters that changes the resolution; or before `every` unit with parameters."""
    groups: list[list[Unit]] = []
    places: int | None = None
    waiting: list[Unit] = []
    for unit in units:
        changes = places is not None and unit.positions is not None and _differ(places, unit.positions)
        if not unit.size:
            (waiting if waiting or changes or not groups else groups[-1]).append(unit)
            continue
        if not groups or every or changes:
            groups.append([])
            places = unit.positions or places
        groups[-1] += [*waiting, unit]
        waiting = []
    if waiting and groups:
        groups[-1] += waiting
    return groups or ([waiting] if waiting else [])


def _is_spread(group: Sequence[Unit]) -> bool:
    return any(unit.matrices and (unit.positions or 0) > 1 for unit in group)


def _differ(places: int, others: int) -> bool:
    return max(places, others) >= _CHANGE * max(1, min(places, others))


def _with_matrices(groups: list[list[Unit]]) -> list[list[Unit]]:
    """Join each group without a weight matrix to the one before it; the first one, to the one after it."""
    kept: list[list[Unit]] = []
    for group in groups:
        if kept and not (_matrices(group) and _matrices(kept[0])):
            kept[-1] = [*kept[-1], *group]
        else:
            kept.append(group)
    return kept


def _matrices(group: Sequence[Unit]) -> int:
    return sum(unit.matrices for unit in group)


def _split_stem(group: list[Unit]) -> list[list[Unit]]:
    """Split before the first block, where a weight matrix comes before it."""
    for at, unit in enumerate(group):
        if unit.matrices >= 2 and _matrices(group[:at]):
            return [group[:at], group[at:]]
    return [group]
