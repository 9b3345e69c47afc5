"""A name for what a feature depends on: equal only where the weights, the data and the code that makes it are equal."""

from __future__ import annotations

import enum
import functools
import hashlib
import itertools
import os
import re
import stat
import sys
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["UnknownContentError", "fingerprint"]

_OWN = __name__.partition(".")[0]

_MOST_FILES = 2_000_000  # of a folder that a dataset names: beyond, it is no folder of images
_MOST_KNOWN = 100_000  # objects whose digests are kept: a dataset may hold one for each of millions of samples
_PLAIN = (types.NoneType, bool, int, float, complex, bytes, type(Ellipsis), type(NotImplemented))


class UnknownContentError(ValueError):
    """Something holds what cannot be told apart from run to run: an open file, a connection."""


def fingerprint(**parts: object) -> str:
    """Give 32 hexadecimal digits that depend on all that the parts hold.

    Objects are taken by what pickle would save of them, tensors and arrays by their bytes, functions and classes of
    the user's own by their code and the values that they refer to, those of installed packages and of this library by
    name and version. A string or Path that is a file stands for its path, size and time of modification as well, and
    that of a folder for all files in it.

    Raises:
        UnknownContentError: A part cannot be taken apart.
    """
    reader = _Reader()
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(parts):
        digest.update(name.encode() + b"\0" + reader.digest(parts[name]))
    for folder in sorted(reader.folders):
        for file in _files(folder):
            digest.update(_hash(*file))
    return digest.hexdigest()


class _Reader:
    """Digests of values. Those of the last objects are kept, so that what is held twice is read once."""

    def __init__(self) -> None:
        self.folders: set[str] = set()
        self._known: dict[int, tuple[object, bytes]] = {}  # the object too, so that no other one gets its id
        self._open: set[int] = set()

    def digest(self, value: object) -> bytes:
        if isinstance(value, _PLAIN) and not isinstance(value, enum.Enum):
            return _hash(type(value).__name__, repr(value))
        if isinstance(value, str | os.PathLike):
            return self._text(value)
        if id(value) in self._open:
            return b"cycle"
        if id(value) in self._known:
            return self._known[id(value)][1]
        self._open.add(id(value))
        try:
            found = self._take_apart(value)
        finally:
            self._open.discard(id(value))
        if not isinstance(value, tuple):  # of which lists of samples hold millions
            self._known[id(value)] = value, found
            if len(self._known) > _MOST_KNOWN:
                del self._known[next(iter(self._known))]
        return found

    def _text(self, value: str | os.PathLike[Any]) -> bytes:
        text = os.fsdecode(value)
        found = _stat(text) if len(text) < 4096 and text.strip("./~\\") else None  # code joins paths by "/"
        if found is None:
            return _hash("text", text)
        if stat.S_ISDIR(found.st_mode):
            self.folders.add(os.path.abspath(text))  # noqa: PTH100  # as in _stat
            return _hash("folder", text)
        return _hash("file", text, *_size_and_time(found))

    def _take_apart(self, value: Any) -> bytes:
        if isinstance(value, Tensor):
            return _hash("tensor", str(value.dtype), str(tuple(value.shape)), _tensor_bytes(value))
        if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
            return _hash("array", value.dtype.str, str(value.shape), _array_bytes(value))
        if isinstance(value, list | tuple):
            return self._all(type(value).__name__, value)
        if isinstance(value, set | frozenset):
            return _hash("set", *sorted(self.digest(item) for item in value))
        if type(value) is dict:
            return self._all("dict", (part for item in value.items() for part in item))
        return self._code(value)

    def _code(self, value: Any) -> bytes:
        if isinstance(value, types.CodeType):
            return self._all("code", (value.co_code, value.co_names, value.co_varnames, value.co_consts))
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, types.ModuleType):
            return _hash("module", value.__name__, str(getattr(value, "__version__", "")))
        if isinstance(value, types.BuiltinFunctionType):
            return _hash("builtin", str(value.__module__), value.__qualname__)
        if isinstance(value, re.Pattern):
            return _hash("pattern", str(value.pattern), str(value.flags))
        wrapped = _wrapped(value)
        return self._object(value) if wrapped is None else self._all(type(value).__name__, wrapped)

    def _function(self, value: types.FunctionType) -> bytes:
        name = f"{value.__module__}.{value.__qualname__}"
        if _is_installed(value.__module__):
            return _hash("function", name, _version(value.__module__))
        closed = [cell.cell_contents for cell in value.__closure__ or () if not _is_empty(cell)]
        used = [value.__globals__[n] for n in _names(value.__code__) if n in value.__globals__]
        return self._all("function", (name, value.__code__, value.__defaults__, value.__kwdefaults__, closed, used))

    def _class(self, value: type) -> bytes:
        name = f"{value.__module__}.{value.__qualname__}"
        if _is_installed(value.__module__):
            return _hash("class", name, _version(value.__module__))
        own = {
            name: item
            for name, item in vars(value).items()
            if isinstance(item, types.FunctionType) or not name.startswith(("__", "_abc_"))
        }
        return self._all("class", (name, own, value.__bases__))

    def _object(self, value: Any) -> bytes:
        if isinstance(value, enum.Enum):
            return _hash("enum", type(value).__qualname__, value.name)
        try:
            reduced = value.__reduce_ex__(4)
        except Exception as error:  # classes raise many kinds to say that they cannot be pickled
            raise UnknownContentError(f"a {type(value).__name__} cannot be read: {error}") from error
        if isinstance(reduced, str):  # the name of a global
            return _hash("global", type(value).__module__, reduced)
        parts = [list(part) if isinstance(part, Iterator) else part for part in reduced]
        return self._all("object", (type(value), *parts))

    def _all(self, kind: str, values: Iterable[object]) -> bytes:
        return _hash_all(itertools.chain([kind], map(self.digest, values)))


def _wrapped(value: Any) -> tuple[object, ...] | None:
    """Return what a wrapper around functions holds; None for anything else."""
    if isinstance(value, types.MethodType):
        return value.__func__, value.__self__
    if isinstance(value, functools.partial):
        return value.func, value.args, value.keywords
    if isinstance(value, property):
        return value.fget, value.fset
    if isinstance(value, staticmethod | classmethod):
        return (value.__func__,)
    return (value.func,) if isinstance(value, functools.cached_property) else None


def _hash(*parts: str | bytes | memoryview) -> bytes:
    return _hash_all(parts)


def _hash_all(parts: Iterable[str | bytes | memoryview]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()


def _tensor_bytes(value: Tensor) -> memoryview:
    plain = value.detach().cpu().contiguous().flatten()
    return plain.view(torch.uint8).numpy().data if plain.numel() else memoryview(b"")


def _array_bytes(value: Any) -> memoryview:
    plain = np.ascontiguousarray(value).reshape(-1)
    return plain.view(np.uint8).data if plain.nbytes else memoryview(b"")


def _is_installed(module: str | None) -> bool:
    top = (module or "").partition(".")[0]
    file = getattr(sys.modules.get(module or ""), "__file__", None) or ""
    return top in {_OWN, *sys.stdlib_module_names} or "site-packages" in file or "dist-packages" in file


def _version(module: str | None) -> str:
    top = (module or "").partition(".")[0]
    version = str(getattr(sys.modules.get(top), "__version__", ""))
    return f"{version} {_own_sources()}" if top == _OWN else version


@functools.cache
def _own_sources() -> str:
    """Tell this library's own code from that of a checkout that was edited.

    Not taken apart as the user's is: its words ("train", "images") would stand for folders of that name.
    """
    package = Path(__file__).parents[1]
    rooms = package, package / "callbacks"  # the latter may be a link, which rglob does not follow
    files = sorted({path.resolve() for room in rooms for path in room.rglob("*.py")})
    return _hash_all(part for path in files for part in (path.name, *_size_and_time(path.stat()))).hex()


def _names(code: types.CodeType) -> Iterator[str]:
    """Yield the names of globals that a function or those inside it may read."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _is_empty(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018  # the access is the test
    except ValueError:
        return True
    return False


def _files(folder: str) -> Iterator[tuple[str, str, str]]:
    """Yield path, size and time of all files in a folder."""
    count = 0
    for place, folders, names in os.walk(folder):
        folders.sort()
        count += len(names)
        if count > _MOST_FILES:
            raise UnknownContentError(f"{folder} holds more than {_MOST_FILES} files.")
        for name in sorted(names):
            path = os.path.join(place, name)  # noqa: PTH118  # as in _stat
            found = _stat(path)
            yield path, *(_size_and_time(found) if found else ("", ""))


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116  # a Path for each of a million strings takes longer than all the rest
    except (OSError, ValueError):
        return None


def _size_and_time(found: os.stat_result) -> tuple[str, str]:
    return str(found.st_size), str(found.st_mtime_ns)
