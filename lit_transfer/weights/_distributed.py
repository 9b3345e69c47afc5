"""Folders that torch.distributed.checkpoint wrote: each tensor is put together from its pieces when it is read.

Layout: `.metadata`, the pickled records of each tensor's shape and pieces, of the file, first byte and length of each
piece, and of each value's place in the nested dictionaries; beside it files with one torch zip after the other, one for
each piece or value. Lightning adds `meta.pt` with all that is no tensor. No process group is needed, and nothing is
unpickled but inertly. Source: torch/distributed/checkpoint/metadata.py, filesystem.py and _nested_dict.py.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from torch import Tensor

from lit_transfer.weights._content import Content
from lit_transfer.weights._errors import WeightsError
from lit_transfer.weights._inert import unpickle
from lit_transfer.weights._lazy import FileTensor, LazyTensor, SourceFile
from lit_transfer.weights._made import MadeTensor
from lit_transfer.weights._pickled import UnreadTensor
from lit_transfer.weights._stand_ins import Global, InertDict, StandIn
from lit_transfer.weights._torch_zip import read_torch_zip

RECORDS = ".metadata"
LIGHTNINGS = "meta.pt"
_RECORD = "torch.distributed.checkpoint.metadata."
_MAX_DEPTH = 20
Sizes = tuple[int, ...]


@dataclass(frozen=True)
class _Place:
    """Where a piece lies: a file, its first byte, its length; or why it cannot be read."""

    file: SourceFile | None
    start: int
    length: int
    why: str = ""


@dataclass(frozen=True)
class _Piece:
    """A box of a tensor: first index and size in each dimension, and where its values lie."""

    offsets: Sizes
    sizes: Sizes
    place: _Place


def is_distributed(folder: Path) -> bool:
    """Whether torch.distributed.checkpoint wrote the folder."""
    return (folder / RECORDS).is_file()


def read_distributed(folder: Path, *, verify: bool = True, values: bool = False) -> Content:
    """Read the records of a folder; the tensors stay in their files.

    Args:
        folder: One for which `is_distributed` holds.
        verify: Whether the bytes of a piece are compared with its checksum when it is read.
        values: Whether what is no tensor (an optimizer's settings) is read, too; each is one small read.

    Raises:
        WeightsError: The records are damaged, or none.
    """
    file = SourceFile.at(folder / RECORDS)
    with file.path.open("rb") as stream:
        root, names = unpickle(stream, file.size, _refuse)
    if not isinstance(root, StandIn) or root.name != f"{_RECORD}Metadata":
        some = ", ".join(names) or "nothing"
        raise WeightsError(f"{file.path} is no record of shards; it names {some}")
    records = root.attributes
    try:
        places = dict(_places(folder, records["storage_data"]))
        found = {n: _item(n, r, places, verify, values) for n, r in records["state_dict_metadata"].items()}
        nested = _nested(found, records.get("planner_data") or {})
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{file.path}: the records of the shards are damaged ({error!r})") from error
    return Content(nested, f"distributed checkpoint of {len({p.file for p in places.values()})} files", file, {})


def _refuse(pid: Any) -> Any:
    raise WeightsError("the records of the shards refer to something outside them: damaged")


def _places(folder: Path, storage: dict[Any, StandIn]) -> Iterator[tuple[tuple[str, Sizes | None], _Place]]:
    """(name, offset of the piece) -> where it lies; the offset of a value is None."""
    files: dict[str, SourceFile | None] = {}
    for index, entry in storage.items():
        key, info = index.attributes, entry.attributes
        shard, start, length = info["relative_path"], info["offset"], info["length"]
        if not isinstance(shard, str) or not all(type(n) is int and n >= 0 for n in (start, length)):
            raise WeightsError(f"{folder / RECORDS}: the place of {key['fqn']!r} cannot be understood: damaged")
        if shard not in files:
            files[shard] = _shard(folder, shard)
        file = files[shard]
        why = f"its shard {shard} is not in {folder}: copy all files of the folder" if file is None else ""
        if file is not None and start + length > file.size:
            why = f"its shard {file.path} is truncated: {file.size:,} bytes of at least {start + length:,}"
        if info.get("transform_descriptors"):
            why = f"it was written with the extension {info['transform_descriptors']}: save it without"
        yield (key["fqn"], key.get("offset")), _Place(file, start, length, why)


def _shard(folder: Path, name: str) -> SourceFile | None:
    """A file of the folder, None if it is not there. A name that leads anywhere else is refused."""
    plain = PurePosixPath(name).name == name == PureWindowsPath(name).name and name not in ("", ".", "..")
    if not plain or "\0" in name:
        raise WeightsError(f"{folder / RECORDS} names the shard {name[:80]!r}: only files of the folder are read")
    return SourceFile.at(folder / name) if (folder / name).is_file() else None


def _item(
    name: str, record: StandIn, places: dict[tuple[str, Sizes | None], _Place], verify: bool, values: bool
) -> Any:
    """The lazy tensor of a record, or the value."""
    if record.name == f"{_RECORD}BytesStorageMetadata":
        return _content(places[name, None], verify) if values else StandIn("value in a shard")
    if record.name != f"{_RECORD}TensorStorageMetadata":
        raise WeightsError(f"{name}: the records know no {record.name}: damaged, or of a newer torch")
    shape, dtype = _sizes(record.attributes["size"]), _dtype(record.attributes["properties"])
    chunks = [chunk.attributes for chunk in record.attributes["chunks"]]
    boxes = [(_sizes(chunk["offsets"]), _sizes(chunk["sizes"])) for chunk in chunks]
    for offsets, sizes in boxes:
        if not len(offsets) == len(sizes) == len(shape) or any(
            first + size > whole for first, size, whole in zip(offsets, sizes, shape, strict=True)
        ):
            raise WeightsError(f"{name}: a piece of {sizes} at {offsets} does not lie in a tensor of {shape}: damaged")
    if sum(math.prod(sizes) for _, sizes in boxes) != math.prod(shape):
        return UnreadTensor("its pieces do not make up the whole: some were not saved", dtype, shape)
    pieces = [_Piece(offsets, sizes, places[name, offsets]) for offsets, sizes in boxes]
    if any(math.prod(piece.sizes) * dtype.itemsize > piece.place.length for piece in pieces):
        raise WeightsError(f"{name}: a piece is declared larger than its bytes: damaged")
    why = next((piece.place.why for piece in pieces if piece.place.why), "")
    return UnreadTensor(why, dtype, shape) if why else _whole(pieces, dtype, shape, verify)


def _whole(pieces: list[_Piece], dtype: torch.dtype, shape: Sizes, verify: bool) -> LazyTensor:
    files = tuple({piece.place.file: None for piece in pieces if piece.place.file is not None})
    cut = partial(_assemble, pieces, dtype, verify)
    return MadeTensor(partial(cut, (0,) * len(shape), shape), dtype, shape, files, cut)


def _assemble(pieces: list[_Piece], dtype: torch.dtype, verify: bool, offsets: Sizes, sizes: Sizes) -> Tensor:
    """A box of a tensor; that each element comes from one piece is checked, for the records may lie."""
    if len(pieces) == 1 and pieces[0].sizes == sizes:
        return _read(pieces[0], dtype, verify).read()
    box, covered = torch.empty(sizes, dtype=dtype), torch.zeros(sizes, dtype=torch.bool)
    for piece in pieces:
        first = tuple(map(max, offsets, piece.offsets))
        ends = (min(a + n, b + m) for a, n, b, m in zip(offsets, sizes, piece.offsets, piece.sizes, strict=True))
        common = tuple(end - start for start, end in zip(first, ends, strict=True))
        if any(count <= 0 for count in common):
            continue
        inside = tuple(slice(f - o, f - o + n) for f, o, n in zip(first, offsets, common, strict=True))
        if covered[inside].any():
            raise WeightsError("two of its pieces overlap: the records of the shards are damaged")
        covered[inside] = True
        skipped = tuple(f - o for f, o in zip(first, piece.offsets, strict=True))
        box[inside] = _read(piece, dtype, verify).cut(skipped, common).read()
    if not covered.all():
        raise WeightsError("its pieces do not make up the whole: the records of the shards are damaged")
    return box


def _read(piece: _Piece, dtype: torch.dtype, verify: bool) -> FileTensor:
    found = _content(piece.place, verify)
    if not isinstance(found, FileTensor) or (found.dtype, found.shape) != (dtype, piece.sizes):
        what = f"{found.dtype} {found.shape}" if isinstance(found, FileTensor) else type(found).__name__
        raise WeightsError(f"a piece is declared as {dtype} {piece.sizes}, and is {what}: damaged")
    return found


def _content(place: _Place, verify: bool) -> Any:
    if place.file is None or place.why:
        raise WeightsError(place.why)
    return read_torch_zip(place.file, verify=verify, window=(place.start, place.length)).root


def _sizes(value: Any) -> Sizes:
    if not isinstance(value, tuple) or not all(type(n) is int and 0 <= n < 2**62 for n in value) or len(value) > 64:
        raise WeightsError(f"the records hold the shape {str(value)[:80]}: damaged")
    return value


def _dtype(properties: StandIn) -> torch.dtype:
    kind = properties.state[0] if isinstance(properties.state, tuple) else properties.attributes["dtype"]
    dtype = getattr(torch, kind.name.rpartition(".")[2], None) if isinstance(kind, Global) else None
    if not isinstance(dtype, torch.dtype):
        raise WeightsError("the records hold a dtype that this torch does not have")
    return dtype


def _nested(items: dict[str, Any], paths: dict[str, Any]) -> Any:
    """The items in the dictionaries and lists that they were taken from; numbers in a path are places in a list."""
    root = InertDict()
    for name, item in items.items():
        path = paths.get(name, (name,)) if isinstance(paths, dict) else (name,)
        if not isinstance(path, tuple) or not 0 < len(path) <= _MAX_DEPTH:
            raise WeightsError(f"{name}: its place is {str(path)[:80]}: damaged")
        inner: Any = root
        for part in path[:-1]:
            inner = inner.setdefault(part, InertDict())
            if not isinstance(inner, InertDict):
                raise WeightsError(f"{name}: its place is inside a value: damaged")
        inner[path[-1]] = item
    return _with_lists(root)


def _with_lists(value: Any) -> Any:
    if not isinstance(value, InertDict):
        return value
    for name, item in value.items():
        value[name] = _with_lists(item)
    numbered = bool(value) and set(value) == set(range(len(value)))
    return [value[i] for i in range(len(value))] if numbered else value
