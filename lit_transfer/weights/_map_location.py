"""map_location, in the four forms that torch.load takes."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

MapLocation: TypeAlias = "str | torch.device | dict[str, str] | Callable[[torch.UntypedStorage, str], object] | None"


def placed(values: Tensor, location: str, map_location: MapLocation) -> Tensor:
    """Move to where `map_location` says. None, or a dict without the tag, leaves the values where they are."""
    if map_location is None:
        return values
    if isinstance(map_location, dict):
        return values.to(map_location[location]) if location in map_location else values
    if isinstance(map_location, str | torch.device):
        return values.to(map_location)
    values = values.contiguous()
    moved = map_location(values.untyped_storage(), location)
    if moved is None:
        return values
    if isinstance(moved, torch.storage.TypedStorage):
        moved = moved._untyped_storage
    if not isinstance(moved, torch.UntypedStorage):
        raise TypeError(f"map_location must return a storage or None, got {type(moved).__name__}")
    return torch.empty(0, dtype=values.dtype, device=moved.device).set_(moved, 0, values.shape, values.stride())
