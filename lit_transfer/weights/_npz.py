r"""Numpy's archives (.npz): a zip file with one array for each member, read in place and without its pickles.

Layout of a member: `\x93NUMPY`, version (2 bytes), length of the header (2 bytes, 4 from version 2 on), the header (a
Python dictionary of `descr`, `fortran_order` and `shape`), the values. Source: numpy.lib.format.
"""

import math
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import IO

import numpy as np
import torch
from torch import Tensor

from lit_transfer.weights._content import Content
from lit_transfer.weights._errors import WeightsError
from lit_transfer.weights._lazy import FileTensor, LazyTensor, SourceFile, Storage, strides
from lit_transfer.weights._made import MadeTensor
from lit_transfer.weights._pickled import NUMBERS, torch_dtype
from lit_transfer.weights._stand_ins import InertDict, StandIn
from lit_transfer.weights._unpacked import ALWAYS_BYTES, MAX_RATIO
from lit_transfer.weights._zip_members import ZIP_ERRORS, damaged_zip, first_byte, require_apart, verify_member

MAX_ARRAYS = 100_000
MAX_HEADER_BYTES = 10_000  # numpy's own limit
_MAGIC = b"\x93NUMPY"
_HEADER = re.compile(
    r"\{(?=.*'descr': *'(?P<order>[<>|=]?)(?P<kind>\w+)')(?=.*'fortran_order': *(?P<columns>True|False))"
    r"(?=.*'shape': *\((?P<shape>(?:\d{1,19}L?(?:, *|(?=\)))){0,64})\))"
)


@dataclass(frozen=True)
class _Header:
    """What a member says of its array; `length` is the number of bytes before the values."""

    length: int
    order: str
    kind: str
    columns: bool
    shape: tuple[int, ...]


def read_npz(file: SourceFile, *, verify: bool = True) -> Content:
    """Read the header of each array; arrays of objects become stand-ins, since only unpickling could read them.

    Args:
        file: The file.
        verify: Whether the arrays are compared with the archive's checksums when they are read.
    """
    root = InertDict()
    try:
        with zipfile.ZipFile(file.path) as archive, file.open() as handle:
            _require_sound(file, archive.infolist())
            for info in archive.infolist():
                root[info.filename.removesuffix(".npy")] = _array(file, info, archive, handle, verify)
    except ZIP_ERRORS as error:
        if isinstance(error, WeightsError):
            raise
        raise damaged_zip(file, error) from error
    return Content(root, "numpy archive", file)


def _require_sound(file: SourceFile, infos: list[zipfile.ZipInfo]) -> None:
    require_apart(file, infos)
    if len(infos) > MAX_ARRAYS:
        raise WeightsError(f"{file.path} is a numpy archive of {len(infos):,} arrays: no checkpoint is like that")
    strange = [info.filename for info in infos if not info.filename.endswith(".npy")]
    if strange:
        raise WeightsError(f"{file.path} is a zip file of arrays and of {strange[0]!r}: no checkpoint is like that")
    if sum(info.file_size for info in infos) > max(MAX_RATIO * file.size, ALWAYS_BYTES):
        raise WeightsError(
            f"{file.path} has {file.size:,} bytes and declares {sum(info.file_size for info in infos):,}: damaged, or "
            "a zip bomb"
        )


def _array(
    file: SourceFile, info: zipfile.ZipInfo, archive: zipfile.ZipFile, handle: IO[bytes], verify: bool
) -> LazyTensor | StandIn:
    stored = info.compress_type == zipfile.ZIP_STORED
    if stored:
        handle.seek(first_byte(file, info.header_offset, info.filename, handle))
        header = _header(handle.read, info, file)
    else:
        with archive.open(info) as member:
            header = _header(member.read, info, file)
    dtype = _dtype(header)
    if dtype is None:
        return StandIn(f"an array of {header.order}{header.kind}")
    nbytes = math.prod(header.shape) * dtype.itemsize
    if header.length + nbytes != info.file_size:
        raise WeightsError(
            f"{file.path}: the array {info.filename!r} declares the shape {header.shape} and has "
            f"{info.file_size - header.length} bytes where {nbytes} are needed: damaged"
        )
    if not stored:
        return MadeTensor(partial(_unpack, file, info.filename, header, dtype), dtype, header.shape)
    check = partial(verify_member, file, info) if verify and info.CRC else None
    locate = partial(_first_value, file, info, header.length)
    storage = Storage(file, nbytes, locate, swapped=header.order == ">", verify=check)
    return FileTensor(storage, dtype, header.shape, strides(header.shape, columns=header.columns))


def _first_value(file: SourceFile, info: zipfile.ZipInfo, skip: int, handle: IO[bytes]) -> int:
    return first_byte(file, info.header_offset, info.filename, handle) + skip


def _header(read: Callable[[int], bytes], info: zipfile.ZipInfo, file: SourceFile) -> _Header:
    start = read(10)
    wide = start[6:7] >= b"\x02"
    start += read(2) if wide else b""
    length = int.from_bytes(start[8:], "little")
    if not start.startswith(_MAGIC) or not 0 < length <= min(MAX_HEADER_BYTES, info.file_size):
        raise WeightsError(f"{file.path}: member {info.filename!r} is no array, or its header is damaged")
    text = read(length).decode("latin1")
    if text.startswith("{'descr': ["):
        return _Header(len(start) + length, "", "records", False, ())
    found = _HEADER.match(text)
    if found is None:
        raise WeightsError(f"{file.path}: the header of the array {info.filename!r} is damaged: {text[:80]!r}")
    sizes = tuple(int(size) for size in re.findall(r"\d+", found["shape"]))
    return _Header(len(start) + length, found["order"], found["kind"], found["columns"] == "True", sizes)


def _dtype(header: _Header) -> torch.dtype | None:
    """The kind of number; numpy has no bfloat16, and JAX's are two bytes of no kind (`V2`)."""
    if header.kind == "V2":
        return torch.bfloat16
    return torch_dtype(np.dtype(header.kind)) if header.kind in NUMBERS else None


def _unpack(file: SourceFile, name: str, header: _Header, dtype: torch.dtype) -> Tensor:
    """The values of a compressed member; zipfile compares them with their checksum."""
    with file.open() as handle:
        try:
            with zipfile.ZipFile(handle) as archive, archive.open(name) as member:
                data = bytearray(member.read()[header.length :])
        except ZIP_ERRORS as error:
            if isinstance(error, WeightsError):
                raise
            raise damaged_zip(file, error) from error
    raw = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    if len(data) != math.prod(header.shape) * dtype.itemsize:
        raise WeightsError(f"{file.path}: the array {name!r} is truncated")
    if header.order == ">":
        raw = raw.view(-1, dtype.itemsize // (2 if dtype.is_complex else 1)).flip(1).reshape(-1)
    return raw.view(dtype).as_strided(header.shape, strides(header.shape, columns=header.columns))


def is_npz(head: bytes) -> bool:
    """Whether the first member of a zip file, by its local header, is an array."""
    return head.startswith(b"PK\x03\x04") and head[30 : 30 + int.from_bytes(head[26:28], "little")].endswith(b".npy")
