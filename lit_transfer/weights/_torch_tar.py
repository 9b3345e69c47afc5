"""The oldest format of torch (before 0.1.10): a tar file of storages, tensors and a pickle.

Layout: member `storages` is the pickled number of storages, then for each the pickle of (key, location, class), the
number of elements (8 bytes) and the bytes; then the pickled list of views (key, root key, first element, elements).
Member `tensors` is the pickled number of tensors, then for each the pickle of (key, storage key, class), the number of
dimensions (4 bytes and 4 of padding), sizes, strides and offset (8 bytes each). Member `pickle` refers to both by key.
Source: `legacy_load` in torch/serialization.py.
"""

import struct
from functools import partial
from typing import IO, Any

from lit_transfer.weights._builders import storage_dtype
from lit_transfer.weights._content import Content
from lit_transfer.weights._errors import WeightsError
from lit_transfer.weights._inert import unpickle
from lit_transfer.weights._lazy import FileTensor, SourceFile, Storage
from lit_transfer.weights._stand_ins import Global, TypedStorage
from lit_transfer.weights._tar import tar_members

_MAX_OBJECTS = 1_000_000


def read_torch_tar(file: SourceFile) -> Content:
    """Read the tables and the pickle of a tar checkpoint; the storages stay in the file."""
    with file.path.open("rb") as stream:
        places = {name: (start, start + size) for name, start, size in tar_members(stream, file)}
        lost = [name for name in ("storages", "tensors", "pickle") if name not in places]
        if lost:
            raise WeightsError(f"{file.path} is a tar archive without {' and '.join(lost)}: truncated or damaged")
        known: dict[Any, Any] = {}
        try:
            _read_storages(stream, *places["storages"], file, known)
            _read_tensors(stream, *places["tensors"], file, known)
        except (struct.error, TypeError, ValueError, KeyError, AttributeError) as error:
            if isinstance(error, WeightsError):
                raise
            raise WeightsError(f"{file.path}: the table of tensors is damaged ({error!r})") from error
        start, end = places["pickle"]
        stream.seek(start)
        root, names = unpickle(stream, end, partial(_persistent, known))
    return Content(root, "legacy torch tar", file, names)


def _persistent(known: dict[Any, Any], pid: Any) -> Any:
    if isinstance(pid, tuple) and pid and isinstance(pid[0], Global):
        return pid[0]  # a module's class, saved with its source
    key = int(pid) if isinstance(pid, str) and pid.isdigit() and len(pid) < 20 else pid
    if not isinstance(key, int | str) or key not in known:
        raise WeightsError("the pickle refers to a tensor that the file does not have")
    return known[key]


def _read_storages(stream: IO[bytes], start: int, end: int, file: SourceFile, known: dict[Any, Any]) -> None:
    stream.seek(start)
    for _ in range(_count(stream, end)):
        key, location, kind = _plain(stream, end)
        dtype = storage_dtype(kind)
        (count,) = struct.unpack("<q", stream.read(8))
        first = stream.tell()
        if count < 0 or first + count * dtype.itemsize > end:
            raise WeightsError(f"{file.path}: a storage declares {count} elements: truncated or damaged")
        storage = Storage(file, count * dtype.itemsize, partial(_fixed, first), str(location))
        known[int(key)] = TypedStorage(storage, dtype)
        stream.seek(first + count * dtype.itemsize)
    for key, root, offset, count in _plain(stream, end):
        whole = known[int(root)]
        width = whole.dtype.itemsize
        if min(offset, count) < 0 or (offset + count) * width > whole.storage.nbytes:
            raise WeightsError(f"{file.path}: a view reaches beyond its storage: damaged")
        first = whole.storage.locate(stream) + offset * width
        known[int(key)] = TypedStorage(Storage(file, count * width, partial(_fixed, first)), whole.dtype)


def _read_tensors(stream: IO[bytes], start: int, end: int, file: SourceFile, known: dict[Any, Any]) -> None:
    stream.seek(start)
    nothing = Storage(file, 0, partial(_fixed, start))
    for _ in range(_count(stream, end)):
        key, storage_key, kind = _plain(stream, end)
        dimensions, _ = struct.unpack("<ii", stream.read(8))
        if not 0 <= dimensions <= 64:
            raise WeightsError(f"a tensor declares {dimensions} dimensions: damaged")
        numbers = struct.unpack(f"<{2 * dimensions + 1}q", stream.read(8 * (2 * dimensions + 1)))
        shape, stride = numbers[:dimensions], numbers[dimensions:-1]
        storage = TypedStorage(nothing, storage_dtype(kind)) if storage_key is None else known[int(storage_key)]
        if not dimensions and not storage.storage.nbytes:
            shape, stride = (0,), (1,)  # an empty tensor had no dimensions then, and a number was no tensor
        known[int(key)] = FileTensor(storage.storage, storage.dtype, shape, stride, numbers[-1])


def _fixed(position: int, handle: IO[bytes]) -> int:
    return position


def _plain(stream: IO[bytes], end: int) -> Any:
    return unpickle(stream, end, partial(_persistent, {}))[0]


def _count(stream: IO[bytes], end: int) -> int:
    count = _plain(stream, end)
    if type(count) is not int or not 0 <= count <= _MAX_OBJECTS:
        raise WeightsError("the number of tensors cannot be understood: damaged")
    return count
