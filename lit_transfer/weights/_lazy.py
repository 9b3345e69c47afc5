"""Tensors that are known by shape and place, and whose bytes are read only when they are asked for."""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from operator import mul
from pathlib import Path
from typing import IO, TypeAlias

import torch
from torch import Tensor

from lit_transfer.weights._errors import WeightsError
from lit_transfer.weights._made import MadeTensor
from lit_transfer.weights._map_location import MapLocation, placed
from lit_transfer.weights._pickled import ArrayTensor, UnreadTensor


@dataclass(frozen=True)
class SourceFile:
    """A file as it was when it was opened; a file that has changed since is refused.

    `owner` is what must live as long as the file is looked at: a temporary file goes with it.
    """

    path: Path
    size: int
    modified_ns: int
    owner: object = field(default=None, compare=False, repr=False)

    @classmethod
    def at(cls, path: Path) -> "SourceFile":
        """Remember size and time of the file at `path`."""
        status = path.stat()
        return cls(path, status.st_size, status.st_mtime_ns)

    def open(self) -> IO[bytes]:
        """Open for unbuffered reading.

        Raises:
            WeightsError: The file is gone or is not the one that was read before.
        """
        try:
            now = SourceFile.at(self.path)
            if now != self:
                raise WeightsError(f"{self.path} has changed since it was opened; call open_checkpoint again")
            return self.path.open("rb", buffering=0)
        except OSError as error:
            raise WeightsError(f"{self.path} cannot be read any more: {error}") from error


def wrong_checksum(file: SourceFile, member: str) -> WeightsError:
    """What is said of bytes that are not those that were written."""
    return WeightsError(
        f"{file.path}: the bytes of member {member!r} do not have the checksum that the archive names: "
        "damaged since they were written; copy or download the file again "
        "(open_checkpoint(path, verify=False) reads it as it is)"
    )


@dataclass(frozen=True, eq=False)
class Storage:
    """A run of bytes in a file that one or more tensors look at.

    Attributes:
        file: The file.
        nbytes: Length.
        locate: Gives its first byte, and checks it.
        location: The device that the file names.
        swapped: Whether the bytes of each number are in the order of another machine.
        verify: Compares the bytes with their checksum, where the format has one.
        crc: That checksum (CRC-32), where it is one of exactly these bytes.
    """

    file: SourceFile
    nbytes: int
    locate: Callable[[IO[bytes]], int]
    location: str = "cpu"
    swapped: bool = False
    verify: Callable[[IO[bytes]], None] | None = None
    crc: int | None = None


@dataclass(frozen=True, eq=False)
class FileTensor:
    """A tensor in a file: a strided view of a storage. Offset and strides count elements, as in torch."""

    storage: Storage
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0

    def __post_init__(self) -> None:
        numbers = (self.offset, *self.shape, *self.stride)
        if any(type(number) is not int or number < 0 for number in numbers) or len(self.shape) != len(self.stride):
            raise WeightsError(f"a tensor declares the shape {self.shape} with strides {self.stride}: not a tensor")
        if len(self.shape) > 64 or math.prod(self.shape) >= 2**62:
            raise WeightsError(f"a tensor declares an impossible shape of {len(self.shape)} dimensions")
        if (self.offset + self.span) * self.dtype.itemsize > self.storage.nbytes:
            raise WeightsError(
                f"a tensor of shape {self.shape} reaches to byte {(self.offset + self.span) * self.dtype.itemsize} "
                f"of a storage of {self.storage.nbytes} bytes"
            )

    @property
    def span(self) -> int:
        """Elements of the storage from the tensor's first to its last."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))

    @property
    def nbytes(self) -> int:
        """Bytes of the values (not of the storage)."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def location(self) -> str:
        """The device that the file names, for example `cuda:0`."""
        return self.storage.location

    @property
    def contiguous(self) -> bool:
        """Whether the bytes lie in the file in the order of a contiguous tensor."""
        return self.span * self.dtype.itemsize == self.nbytes and _row_major(self.shape, self.stride)

    def place(self) -> object:
        """A value that is equal for two tensors of the same bytes."""
        return (id(self.storage), self.dtype, self.shape, self.stride, self.offset)

    def cut(self, offsets: tuple[int, ...], sizes: tuple[int, ...]) -> "FileTensor":
        """The box of those sizes that begins there; of less than the whole no checksum is compared."""
        if sizes == self.shape:
            return self
        first = self.offset + sum(map(mul, offsets, self.stride)) if 0 not in sizes else self.offset
        storage = replace(self.storage, verify=None, crc=None)
        return replace(self, storage=storage, shape=sizes, offset=first)

    def read(self, map_location: MapLocation = None) -> Tensor:
        """The tensor itself: on the CPU, or where `map_location` puts it (a string, a device, a dict, a callable)."""
        with self.storage.file.open() as handle:
            whole = self.span * self.dtype.itemsize == self.storage.nbytes
            crc = self.storage.crc if self.storage.verify and whole else None
            if crc is None and self.storage.verify and is_mostly_wanted(self.storage, self.nbytes):
                self.storage.verify(handle)
            values = self._values(handle, crc)
        return placed(values, self.location, map_location)

    def read_into(self, target: Tensor, handle: IO[bytes]) -> None:
        """Write the values into `target`: straight into its memory where layout and dtype allow, else by a copy."""
        plain = target.device.type == "cpu" and target.is_contiguous() and target.dtype == self.dtype
        if plain and self.contiguous and not self.storage.swapped:
            self._fill(target.view(-1).view(torch.uint8), handle)
        else:
            target.copy_(self._values(handle))

    def check(self, handle: IO[bytes]) -> None:
        """Raise a WeightsError if the bytes are not where the file says they are."""
        end = self.storage.locate(handle) + self.storage.nbytes
        if end > self.storage.file.size:
            raise WeightsError(
                f"{self.storage.file.path} is truncated: {self.storage.file.size} bytes of at least {end}"
            )

    def _values(self, handle: IO[bytes], crc: int | None = None) -> Tensor:
        raw = torch.empty(self.span * self.dtype.itemsize, dtype=torch.uint8)
        self._fill(raw, handle)
        if crc is not None and zlib.crc32(raw.numpy()) != crc:  # type: ignore[arg-type]  # as in _fill
            raise wrong_checksum(self.storage.file, "of the tensor")
        if self.storage.swapped:
            width = self.dtype.itemsize // (2 if self.dtype.is_complex else 1)
            raw = raw.view(-1, width).flip(1).reshape(-1)
        return raw.view(self.dtype).as_strided(self.shape, self.stride)

    def _fill(self, raw: Tensor, handle: IO[bytes]) -> None:
        handle.seek(self.storage.locate(handle) + self.offset * self.dtype.itemsize)
        view = memoryview(raw.numpy())  # type: ignore[arg-type]  # an ndarray is a buffer; numpy says so from Python 3.12 on
        while view:
            count = handle.readinto(view)  # type: ignore[attr-defined]  # an unbuffered file is a RawIOBase
            if not count:
                raise WeightsError(f"{self.storage.file.path} ends inside a tensor of shape {self.shape}: truncated")
            view = view[count:]


@dataclass(frozen=True, eq=False)
class MemoryTensor:
    """A tensor that is in memory already, with the face of a FileTensor."""

    tensor: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """The tensor's dtype."""
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(self.tensor.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return self.tensor.numel() * self.dtype.itemsize

    @property
    def location(self) -> str:
        """The device of the tensor."""
        return str(self.tensor.device)

    def place(self) -> object:
        """A value that is equal for two tensors of the same memory."""
        tensor = self.tensor
        address = id(tensor) if tensor.is_meta else tensor.data_ptr()
        return (address, self.dtype, self.shape, tensor.stride())

    def read(self, map_location: MapLocation = None) -> Tensor:
        """The tensor itself, where it is or where `map_location` puts it."""
        return placed(self.tensor.detach(), self.location, map_location)

    def check(self, handle: None = None) -> None:
        """Raise a WeightsError if there are no values to copy."""
        if self.tensor.is_meta:
            raise WeightsError("a tensor of the mapping is on the meta device: it has no values")

    def read_into(self, target: Tensor, handle: None = None) -> None:
        """Copy the values into `target`."""
        target.copy_(self.tensor.detach())


LazyTensor: TypeAlias = FileTensor | MemoryTensor | ArrayTensor | MadeTensor | UnreadTensor


def is_mostly_wanted(storage: Storage, nbytes: int) -> bool:
    """Whether so much of a storage is to be read that its checksum is worth reading the rest."""
    return 2 * nbytes >= storage.nbytes


def strides(shape: tuple[int, ...], *, columns: bool = False) -> tuple[int, ...]:
    """Strides in elements of an array without gaps, row by row or (as in Fortran) column by column."""
    inner = [shape[:i] if columns else shape[i + 1 :] for i in range(len(shape))]
    return tuple(map(math.prod, inner))


def _row_major(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    expected = 1
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        if size != 1 and step != expected:
            return False
        expected *= size
    return True
