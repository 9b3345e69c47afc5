"""Tensors that are put together when they are read: transposed, joined, cut out of others, or unpacked."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_transfer.weights._declared import Declared
from lit_transfer.weights._errors import WeightsError
from lit_transfer.weights._map_location import MapLocation, placed

if TYPE_CHECKING:
    from lit_transfer.weights._lazy import SourceFile


@dataclass(frozen=True, eq=False)
class MadeTensor(Declared):
    """A tensor of known dtype and shape that `make` gives, with the face of a FileTensor.

    Loading makes all such tensors before it changes the first value of a model.

    Attributes:
        make: Gives the tensor.
        dtype: Its dtype.
        shape: Its shape.
        files: Those that it is made of, where a checkpoint has several.
        cut: Gives the box of it that begins at the indices of the first argument and has the sizes of the second,
            where less than the whole can be read.
    """

    make: Callable[[], Tensor]
    dtype: torch.dtype
    shape: tuple[int, ...]
    files: "tuple[SourceFile, ...]" = ()
    cut: Callable[[tuple[int, ...], tuple[int, ...]], Tensor] | None = None

    def check(self, handle: None = None) -> None:
        """There is nothing to check before it is made."""

    def read(self, map_location: MapLocation = None) -> Tensor:
        """The tensor, where `map_location` puts it."""
        made = self.make().contiguous()
        if made.dtype != self.dtype or tuple(made.shape) != self.shape:
            raise WeightsError(f"{self.dtype} {self.shape} was declared, and {made.dtype} {tuple(made.shape)} found")
        return placed(made, self.location, map_location)

    def read_into(self, target: Tensor, handle: None = None) -> None:
        """Copy the values into `target`."""
        target.copy_(self.read())
