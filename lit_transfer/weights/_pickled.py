"""Tensors whose values lie in the pickle itself (numpy arrays), and those that are not read (quantised, sparse ...).

Both have the face of a FileTensor, so that they are matched, listed and refused under their names.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lit_transfer.weights._declared import Declared
from lit_transfer.weights._errors import WeightsError
from lit_transfer.weights._map_location import MapLocation, placed

# Codes of plain numbers; what else numpy has (text, records, objects, times) is no weight.
NUMBERS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1", "c8", "c16"}


def torch_dtype(dtype: "np.dtype[Any]") -> torch.dtype | None:
    """The dtype of numbers of numpy, in this machine's byte order; None if torch has no such kind."""
    try:
        return torch.from_numpy(np.empty(0, dtype.newbyteorder("="))).dtype
    except TypeError:
        return None


@dataclass(frozen=True, eq=False)
class ArrayTensor:
    """A numpy array as a tensor. Its bytes belong to somebody else: every read is a copy."""

    array: "np.ndarray[Any, Any]"
    dtype: torch.dtype

    @classmethod
    def of(cls, array: "np.ndarray[Any, Any]") -> "ArrayTensor | None":
        """The array as a tensor; None if torch has no such kind of number."""
        dtype = torch_dtype(array.dtype)
        return None if dtype is None else cls(array, dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return tuple(self.array.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return int(self.array.nbytes)

    @property
    def location(self) -> str:
        """Arrays are always on the CPU."""
        return "cpu"

    def place(self) -> object:
        """A value that is equal for one array under two names."""
        return id(self.array)

    def read(self, map_location: MapLocation = None) -> Tensor:
        """A copy in this machine's byte order and row-major, where `map_location` puts it."""
        native = np.array(self.array, dtype=self.array.dtype.newbyteorder("="), order="C")
        return placed(torch.from_numpy(native), self.location, map_location)

    def check(self, handle: None = None) -> None:
        """There is nothing to check: the bytes are in memory."""

    def read_into(self, target: Tensor, handle: None = None) -> None:
        """Copy the values into `target`."""
        target.copy_(self.read())


def not_plain(tensor: Tensor) -> str:
    """What a tensor in memory is, in words, if it is no plain array of numbers that can be copied; else ""."""
    if tensor.is_quantized:
        return "quantised"
    if tensor.is_nested:
        return "a nested tensor, of several shapes"
    if tensor.layout != torch.strided:
        return f"a sparse tensor ({tensor.layout})"
    # A variable for the type checker, which holds that no Tensor can have __tensor_flatten__.
    wrapper: bool = is_traceable_wrapper_subclass(tensor)
    return f"a tensor of class {type(tensor).__qualname__}" if wrapper else ""


@dataclass(frozen=True, eq=False)
class UnreadTensor(Declared):
    """A tensor that the file holds in a form that is not read; `why` says which, and what to do."""

    why: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    def check(self, handle: None = None) -> None:
        """Raise the WeightsError that says why it is not read."""
        raise WeightsError(self.why)

    def read(self, map_location: MapLocation = None) -> Tensor:
        """Raise the WeightsError that says why it is not read."""
        raise WeightsError(self.why)

    def read_into(self, target: Tensor, handle: None = None) -> None:
        """Raise the WeightsError that says why it is not read."""
        raise WeightsError(self.why)
