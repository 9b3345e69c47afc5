"""What the user of FeatureCaching chose, and how far features may be from those that the front gives."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["Options", "apart"]

# Relative to the largest value: a working copy and other batch sizes change the last bits of float32, and narrower
# numbers have fewer.
_BOUND, _NARROW = 1e-4, {torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Options:
    """The arguments of FeatureCaching."""

    views: int
    dtype: str | None
    fast: bool
    folder: Path

    def __post_init__(self) -> None:
        if self.views < 1:
            raise ValueError(f"views must be at least 1, got {self.views}.")
        if self.dtype not in (None, "float32", "bfloat16", "float16"):
            raise ValueError(f"dtype must be 'float32', 'bfloat16', 'float16' or None, got {self.dtype!r}.")

    @property
    def bound(self) -> float:
        """How far what a working copy gives may be from what the front gives."""
        return _BOUND

    def stored_bound(self, *dtypes: torch.dtype) -> float:
        """How far a stored feature may be from what the front gives, where these dtypes take part."""
        return max(self.bound, *(_NARROW.get(dtype, 0.0) for dtype in dtypes))


def apart(features: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest value that was expected."""
    one, other = features.double(), expected.double()
    return float((one - other).abs().max() / other.abs().max().clamp(min=1e-30))
