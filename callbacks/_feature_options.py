"""What the user of FeatureCaching chose, and how far stored features may be from those that the front gives."""

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch

from lit_transfer.features import Fast, bound_of

__all__ = ["Options"]

_NARROW = {torch.float16: 1e-2, torch.bfloat16: 5e-2}  # relative to the largest value


@dataclass(frozen=True)
class Options:
    """The arguments of FeatureCaching."""

    views: int
    dtype: str | None
    fast: Fast
    folder: Path

    def __post_init__(self) -> None:
        if self.views < 0:
            raise ValueError(f"views must be at least 0, got {self.views}.")
        if self.dtype not in (None, "float32", "bfloat16", "float16"):
            raise ValueError(f"dtype must be 'float32', 'bfloat16', 'float16' or None, got {self.dtype!r}.")
        modes = get_args(get_args(Fast)[0])
        if not isinstance(self.fast, bool) and self.fast not in modes:
            raise ValueError(f"fast must be True, False, {' or '.join(map(repr, modes))}, got {self.fast!r}.")
        if self.views == 0 and self.fast is False:
            raise ValueError("views=0 runs the front on a copy made for inference, which fast=False excludes.")
        if self.views == 0 and self.dtype is not None:
            raise ValueError(f"views=0 stores nothing, so that dtype={self.dtype!r} means nothing: leave it out.")

    def stored_bound(self, *dtypes: torch.dtype) -> float:
        """How far a stored feature may be from what the front gives, where these dtypes take part."""
        return max(bound_of(self.fast), *(_NARROW.get(dtype, 0.0) for dtype in dtypes))
