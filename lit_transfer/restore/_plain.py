"""From the inert content of a file to plain values: tensors are read, and what is no plain value is left out."""

from typing import Any

from torch import Tensor

from lit_transfer.weights import Checkpoint

_LEAVE_OUT = object()


def plain_value(value: Any, lost: list[str], place: str = "") -> Any:
    """Read the tensors of a content and leave out objects of foreign classes.

    Args:
        value: A part of `Checkpoint.root`.
        lost: Receives the dotted place of each thing that is left out.
        place: Dotted place of `value` in the file.

    Returns:
        Dictionaries, lists, tuples, numbers, strings and tensors on the CPU; None if `value` itself is left out.
    """
    plain = _plain(value, lost, place)
    return None if plain is _LEAVE_OUT else plain


def plain_root(checkpoint: Checkpoint, lost: list[str]) -> dict[str, Any]:
    """Read the whole content of a checkpoint whose root is a dictionary; see `plain_value`."""
    root: dict[str, Any] = plain_value(checkpoint.root, lost)
    return root


def is_tensor(value: Any) -> bool:
    """Whether this is a tensor: one in a file, or one in memory."""
    return isinstance(value, Tensor) or (hasattr(value, "read_into") and hasattr(value, "shape"))


def number(value: Any) -> float | None:
    """The number that a value holds, be it a tensor with one element; None for anything else."""
    if is_tensor(value) and tuple(value.shape) in ((), (1,)):
        value = (value if isinstance(value, Tensor) else value.read()).item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value


def _plain(value: Any, lost: list[str], place: str) -> Any:
    if is_tensor(value):
        return value if isinstance(value, Tensor) else value.read()
    if value is None or isinstance(value, str | int | float | bytes | complex):
        return value
    if isinstance(value, dict):
        pairs = [(name, _plain(item, lost, f"{place}.{name}" if place else str(name))) for name, item in value.items()]
        return {name: item for name, item in pairs if item is not _LEAVE_OUT and isinstance(name, str | int | float)}
    if isinstance(value, list | tuple):
        items = [_plain(item, lost, f"{place}.{position}") for position, item in enumerate(value)]
        kept = [item for item in items if item is not _LEAVE_OUT]
        return tuple(kept) if isinstance(value, tuple) else kept
    lost.append(place)
    return _LEAVE_OUT
