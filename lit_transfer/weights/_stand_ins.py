"""What the inert unpickler puts in the place of globals, objects and storages."""

from dataclasses import dataclass, field
from typing import Any

import torch

from lit_transfer.weights._lazy import LazyTensor, SourceFile, Storage


@dataclass(frozen=True, eq=False, slots=True)
class Global:
    """A class or function that the pickle names; it is never imported."""

    name: str


@dataclass(eq=False, slots=True)
class StandIn:
    """A dead object of a class that was not imported, with what the pickle gave it."""

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    elements: list[Any] = field(default_factory=list)

    @property
    def attributes(self) -> dict[Any, Any]:
        """The object's `__dict__`, as far as the pickle tells it."""
        state = self.state
        if isinstance(state, tuple) and state and isinstance(state[0], dict):  # (dict, slots)
            state = state[0]
        return state if isinstance(state, dict) else {}


class InertDict(dict[Any, Any]):
    """A dictionary that may carry attributes, as a state dict carries `_metadata`."""

    def __init__(self, items: Any = ()) -> None:
        super().__init__()
        self.attributes: dict[Any, Any] = {}
        for pair in items.items() if isinstance(items, dict) else items:
            key, value = pair
            self[inert_key(key)] = value


@dataclass(frozen=True, eq=False)
class TypedStorage:
    """A storage together with the dtype that its class names."""

    storage: Storage
    dtype: torch.dtype


@dataclass(frozen=True, eq=False, slots=True)
class Span:
    """Bytes of a pickle that were left in the file."""

    file: SourceFile
    start: int
    nbytes: int


def inert_key(key: Any) -> Any:
    """A key that hashes in constant time: nested tuples overflow the C stack, chosen integers collide by millions."""
    if key is None or isinstance(key, str | bytes | float | Global | StandIn):
        return key
    if isinstance(key, int) and abs(key) < 2**60:
        return key
    if isinstance(key, tuple) and len(key) <= 8 and all(isinstance(part, str | int) for part in key):
        return str(key)
    return StandIn("key")


def as_tensor(value: Any) -> LazyTensor | None:
    """The value if it is a tensor, or the tensor that a pickled numpy array is; else None."""
    if isinstance(value, StandIn):
        value = value.state
    return value if isinstance(value, LazyTensor) else None
