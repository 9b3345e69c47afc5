"""Checkpoints in several files: an index in JSON that says in which file each tensor is.

Layout: {"weight_map": {NAME: FILE}, "metadata": {...}}, the files beside the index. Source: huggingface transformers
and safetensors.
"""

import json
from collections.abc import Callable
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from lit_transfer.weights._content import Content
from lit_transfer.weights._errors import WeightsError
from lit_transfer.weights._lazy import FileTensor, SourceFile
from lit_transfer.weights._stand_ins import InertDict

MAX_INDEX_BYTES = 64 * 2**20
MAX_SHARDS = 10_000


def read_sharded(file: SourceFile, read: Callable[[SourceFile], Content]) -> Content:
    """Read the index and each shard's table; `read` reads one file of any format."""
    weight_map, about = _index(file)
    shards: dict[str, Content] = {}
    root = InertDict()
    root.attributes.update({key: text for key, text in about.items() if isinstance(text, str)})
    for name, shard in weight_map.items():
        if shard not in shards:
            shards[shard] = read(_shard(file, shard))
        tensor = shards[shard].root.get(name) if isinstance(shards[shard].root, dict) else None
        if not isinstance(tensor, FileTensor):
            raise WeightsError(f"{file.path} says that {name!r} is in {shard}, but it is not")
        root[name] = tensor
    names = {name: call for content in shards.values() for name, call in content.globals.items()}
    formats = " and ".join(sorted({content.format for content in shards.values()}))
    return Content(root, f"{formats} in {len(shards)} shards", file, names)


def _index(file: SourceFile) -> tuple[dict[str, str], dict[str, Any]]:
    """Name -> file, and what else the index says."""
    if file.size > MAX_INDEX_BYTES:
        raise WeightsError(f"{file.path} has {file.size:,} bytes: no index of shards is like that")
    try:
        index: Any = json.loads(file.path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{file.path} is no valid JSON: {error}") from error
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(f"{file.path} has no `weight_map`: it is not the index of a sharded checkpoint")
    if not all(isinstance(shard, str) for shard in weight_map.values()):
        raise WeightsError(f"{file.path}: `weight_map` must give a file name for each tensor")
    if len(set(weight_map.values())) > MAX_SHARDS:
        raise WeightsError(f"{file.path} names more than {MAX_SHARDS:,} shards")
    about = index.get("metadata")
    return weight_map, about if isinstance(about, dict) else {}


def _shard(index: SourceFile, name: str) -> SourceFile:
    """A file beside the index. A name that leads anywhere else is refused."""
    plain = PurePosixPath(name).name == name == PureWindowsPath(name).name and name not in ("", ".", "..")
    if not plain or "\0" in name or name == index.path.name:
        raise WeightsError(f"{index.path} names the shard {name!r}: only files beside the index are read")
    path = index.path.parent / name
    if not path.is_file():
        raise WeightsError(f"{index.path} names the shard {name}, which is not beside it: download all shards")
    return SourceFile.at(path)
