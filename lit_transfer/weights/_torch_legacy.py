"""Torch's format before 1.6: five pickles in a row, then the storages.

Layout: magic number, protocol, system information, content, keys of the storages in order; then for each storage the
number of its elements (8 bytes, the byte order of the file) and its bytes. Source: `_legacy_save` in
torch/serialization.py.
"""

from functools import partial
from typing import IO, Any

from lit_transfer.weights._builders import storage_dtype
from lit_transfer.weights._content import Content
from lit_transfer.weights._errors import WeightsError
from lit_transfer.weights._inert import unpickle
from lit_transfer.weights._lazy import SourceFile, Storage
from lit_transfer.weights._stand_ins import TypedStorage

MAGIC = 0x1950A86A20F9469CFC6C


class _LegacyStorages:
    """The storages of a legacy file: met in the pickle, placed when the list of keys is known."""

    def __init__(self, file: SourceFile, swapped: bool) -> None:
        self.file = file
        self.swapped = swapped
        self.sizes: dict[str, tuple[int, int]] = {}  # key -> elements, bytes for each
        self.starts: dict[str, int] = {}
        self.known: dict[tuple[str, int, int], Storage] = {}

    def load(self, pid: Any) -> Any:
        """The storage that a persistent id names; a module's class (saved with its source) is returned as it is."""
        if isinstance(pid, tuple) and len(pid) > 1 and pid[0] == "module":
            return pid[1]
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise WeightsError("the pickle refers to something outside it that is no storage")
        _, kind, key, location, count = pid[:5]
        dtype = storage_dtype(kind)
        if type(count) is not int or not 0 <= count * dtype.itemsize <= self.file.size:
            raise WeightsError(f"a storage declares {count} elements in a file of {self.file.size} bytes")
        key = str(key)
        if self.sizes.setdefault(key, (count, dtype.itemsize)) != (count, dtype.itemsize):
            raise WeightsError(f"storage {key} is declared twice with different sizes")
        first, length = self._view(pid, count)
        place = (key, first * dtype.itemsize, length * dtype.itemsize)
        if place not in self.known:
            locate = partial(self._first_byte, key, place[1])
            self.known[place] = Storage(self.file, place[2], locate, str(location), self.swapped)
        return TypedStorage(self.known[place], dtype)

    def place(self, keys: Any, start: int) -> None:
        """Compute where each storage begins, from the order of the keys."""
        if not isinstance(keys, list):
            raise WeightsError(f"{self.file.path}: the list of storages is damaged")
        for key in map(str, keys):
            if key in self.starts:
                raise WeightsError(f"{self.file.path}: storage {key} is listed twice: damaged")
            if key not in self.sizes:
                raise WeightsError(f"{self.file.path}: storage {key} is listed and never used: damaged")
            count, width = self.sizes[key]
            self.starts[key] = start
            start += 8 + count * width
        lost = self.sizes.keys() - self.starts.keys()
        if lost or start > self.file.size:
            raise WeightsError(
                f"{self.file.path} is truncated or damaged: {self.file.size:,} bytes where {start:,} are needed"
                + (f", {len(lost)} storages are missing" if lost else "")
            )

    @staticmethod
    def _view(pid: tuple[Any, ...], count: int) -> tuple[int, int]:
        """First element and length of a view into a storage (`view_metadata`); else of the whole."""
        view = pid[5] if len(pid) > 5 else None
        if view is None:
            return 0, count
        if not isinstance(view, tuple) or len(view) != 3 or any(type(v) is not int or v < 0 for v in view[1:]):
            raise WeightsError("a view of a storage is damaged")
        if view[1] + view[2] > count:
            raise WeightsError("a view reaches beyond its storage")
        return view[1], view[2]

    def _first_byte(self, key: str, skip: int, handle: IO[bytes]) -> int:
        handle.seek(self.starts[key])
        count = int.from_bytes(handle.read(8), "big" if self.swapped else "little")
        if count != self.sizes[key][0]:
            raise WeightsError(
                f"{self.file.path}: storage {key} has {count} elements where {self.sizes[key][0]} are declared: damaged"
            )
        return self.starts[key] + 8 + skip


def read_torch_legacy(file: SourceFile) -> Content:
    """Read the pickles of a legacy torch file; the storages stay in the file."""
    with file.path.open("rb") as stream:

        def load() -> Any:
            return unpickle(stream, file.size, _refuse)[0]

        if load() != MAGIC:
            raise WeightsError(f"{file.path} is a pickle, but not one that torch.save wrote")
        load()
        system = load()
        swapped = isinstance(system, dict) and system.get("little_endian") is False
        storages = _LegacyStorages(file, swapped)
        root, names = unpickle(stream, file.size, storages.load)
        storages.place(load(), stream.tell())
    return Content(root, "legacy torch pickle", file, names)


def _refuse(pid: Any) -> Any:
    raise WeightsError("the pickle refers to a storage before its content begins: damaged")
