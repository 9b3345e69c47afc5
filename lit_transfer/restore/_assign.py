"""Which parameter each moment of an old optimizer belongs to, by order and shape."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from lit_transfer.weights import WeightsError

Shape: TypeAlias = tuple[int, ...]
Key: TypeAlias = tuple[int, Any]  # number of the optimizer, what its state dict calls the parameter
_MAX_STATES = 20_000

# After some names: how far each group is -> (in how many ways, the counts before, the group that took the last name).
_Level: TypeAlias = dict[tuple[int, ...], tuple[int, tuple[int, ...], int | None]]


def assign(groups: Sequence[Sequence[Key]], shapes: Mapping[Key, Shape], names: Mapping[str, Shape]) -> dict[Key, str]:
    """Find the parameter of each moment.

    torch stores an optimizer's state by the position of the parameter, and before 1.6 by its `id()`. A group lists its
    parameters in the model's order, as `model.parameters()` gives them; which parameters a group has is not stored, so
    the shapes of the moments decide. Where no such order fits, shapes that occur once do.

    Args:
        groups: The keys of the parameters of each group, in the file's order.
        shapes: Key -> shape of its moments; keys without moments are absent.
        names: Parameter -> shape, in the order of the old model.

    Returns:
        Key -> name, for each key with moments.

    Raises:
        WeightsError: No order fits, with the first shapes that differ; or several do.
    """
    keys = [key for group in groups for key in group]
    if len(groups) == 1 and len(keys) == len(names):
        found = dict(zip(keys, names, strict=True))
        if all(names[found[key]] == shape for key, shape in shapes.items()):
            return {key: found[key] for key in keys if key in shapes}
    chains = [[key for key in group if key in shapes] for group in groups]
    ways = _in_order([[shapes[key] for key in chain] for chain in chains], list(names.values()))
    if ways is None:
        return _by_shape(groups, shapes, names)
    listed = list(names)
    return {
        key: listed[at]
        for chain, places in zip(chains, ways, strict=True)
        for key, at in zip(chain, places, strict=True)
    }


def _in_order(chains: list[list[Shape]], shapes: list[Shape]) -> list[list[int]] | None:
    """The place in `shapes` of each element of each chain, every chain in order; None if there is no such way."""
    levels: list[_Level] = [{(0,) * len(chains): (1, (), None)}]
    left = Counter(shapes)
    for shape in shapes:
        left[shape] -= 1
        level: _Level = {}
        for counts, (ways, _, _) in levels[-1].items():
            for taker in (None, *range(len(chains))):
                after = _after(counts, taker, chains, shape)
                if after is None or not _feasible(after, chains, shape, left):
                    continue
                known = level.get(after)
                level[after] = (min(2, ways + known[0]), *known[1:]) if known else (ways, counts, taker)
        if len(level) > _MAX_STATES:
            raise WeightsError(_ambiguous())
        levels.append(level)
    end = tuple(len(chain) for chain in chains)
    if end not in levels[-1]:
        return None
    if levels[-1][end][0] > 1:
        raise WeightsError(_ambiguous())
    return _way_back(levels, end)


def _after(
    counts: tuple[int, ...], taker: int | None, chains: list[list[Shape]], shape: Shape
) -> tuple[int, ...] | None:
    if taker is None:
        return counts
    if counts[taker] == len(chains[taker]) or chains[taker][counts[taker]] != shape:
        return None
    return (*counts[:taker], counts[taker] + 1, *counts[taker + 1 :])


def _feasible(counts: tuple[int, ...], chains: list[list[Shape]], shape: Shape, left: Counter[Shape]) -> bool:
    """Whether enough of this shape is left for what the chains still need of it; others have not changed."""
    needed = sum(chain[count:].count(shape) for chain, count in zip(chains, counts, strict=True))
    return needed <= left[shape]


def _way_back(levels: list[_Level], end: tuple[int, ...]) -> list[list[int]]:
    places: list[list[int]] = [[] for _ in end]
    counts = end
    for at in range(len(levels) - 1, 0, -1):
        _, before, taker = levels[at][counts]
        if taker is not None:
            places[taker].insert(0, at - 1)
        counts = before
    return places


def _by_shape(
    groups: Sequence[Sequence[Key]], shapes: Mapping[Key, Shape], names: Mapping[str, Shape]
) -> dict[Key, str]:
    """Pair shapes that occur once on both sides."""
    owners: dict[Shape, list[str]] = {}
    for name, shape in names.items():
        owners.setdefault(shape, []).append(name)
    if len(set(shapes.values())) == len(shapes) and all(len(owners.get(shape, ())) == 1 for shape in shapes.values()):
        return {key: owners[shape][0] for key, shape in shapes.items()}
    raise WeightsError(_contradiction(groups, shapes, names))


def _contradiction(groups: Sequence[Sequence[Key]], shapes: Mapping[Key, Shape], names: Mapping[str, Shape]) -> str:
    keys = [key for group in groups for key in group]
    text = f"the optimizer's state is of another model: it has {len(keys)} parameters, and the weights {len(names)}"
    for position, (key, name) in enumerate(zip(keys, names, strict=False)):
        if key in shapes and shapes[key] != names[name]:
            return (
                f"{text}; the moments of parameter {position} have the shape {list(shapes[key])}, and {name} has "
                f"{list(names[name])}. optimizer='fresh' leaves them out"
            )
    return f"{text}. optimizer='fresh' leaves its moments out"


def _ambiguous() -> str:
    return (
        "the file does not tell which parameters its optimizer's groups hold, and their shapes fit in several ways. "
        "Give their names in the file's order as parameter_names=[...], or leave the moments out with optimizer='fresh'"
    )
