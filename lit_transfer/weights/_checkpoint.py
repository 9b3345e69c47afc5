"""Opening a checkpoint: any readable file, or a mapping of names to tensors."""

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from lit_transfer.weights._builders import is_harmless
from lit_transfer.weights._content import Content
from lit_transfer.weights._deepspeed import how_to_convert
from lit_transfer.weights._distributed import LIGHTNINGS, is_distributed, read_distributed
from lit_transfer.weights._errors import WeightsError, named
from lit_transfer.weights._fetch import fetch, is_remote
from lit_transfer.weights._layouts import StateDict, find_state_dicts
from lit_transfer.weights._lazy import MemoryTensor, SourceFile
from lit_transfer.weights._map_location import MapLocation
from lit_transfer.weights._npz import read_npz
from lit_transfer.weights._pickled import ArrayTensor, UnreadTensor, not_plain
from lit_transfer.weights._plain_pickle import read_pickle
from lit_transfer.weights._recognise import Format, recognise
from lit_transfer.weights._safetensors import read_safetensors
from lit_transfer.weights._sharded import read_sharded
from lit_transfer.weights._stand_ins import InertDict
from lit_transfer.weights._torch_legacy import read_torch_legacy
from lit_transfer.weights._torch_tar import read_torch_tar
from lit_transfer.weights._torch_zip import read_torch_zip
from lit_transfer.weights._unpacked import unpacked

Source: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any] | Checkpoint"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """An opened checkpoint. No tensor is read until it is asked for, and no file stays open.

    Attributes:
        name: The path, or "mapping".
        content: The root of the content: plain values, stand-ins for foreign objects, lazy tensors.
    """

    name: str
    content: Content

    @property
    def format(self) -> str:
        """The format, in words."""
        return self.content.format

    @property
    def root(self) -> Any:
        """The content itself."""
        return self.content.root

    @cached_property
    def state_dicts(self) -> tuple[StateDict, ...]:
        """Each dictionary of tensors, at any depth, and each pickled module."""
        return find_state_dicts(self.content.root)

    @property
    def metadata(self) -> dict[str, str]:
        """Text that save_weights or safetensors keeps beside the tensors."""
        attributes = self.root.attributes if isinstance(self.root, InertDict) else {}
        about = attributes.get("_about", attributes)
        return {k: v for k, v in about.items() if isinstance(k, str) and isinstance(v, str)} if about else {}

    @property
    def foreign_globals(self) -> tuple[str, ...]:
        """Classes and functions that a full unpickler would have imported, and could have called."""
        return tuple(sorted(name for name in self.content.globals if not is_harmless(name)))

    @property
    def foreign_calls(self) -> tuple[str, ...]:
        """The first call of each function and class that a full unpickler would have called, in words."""
        return tuple(call for name in self.foreign_globals if (call := self.content.globals[name]))

    def state_dict(self, key: str | None = None) -> StateDict:
        """The state dict at the dotted place `key`; the one with most tensors if no key is given.

        Raises:
            WeightsError: There is none at that place, or none at all.
        """
        if not self.state_dicts:
            raise WeightsError(f"{self.name} holds no tensors under names")
        if key is None:
            return max(self.state_dicts, key=len)
        for found in self.state_dicts:
            if found.key == key:
                return found
        keys = [found.key for found in self.state_dicts]
        near = difflib.get_close_matches(key, keys, n=3) or keys[:5]
        raise WeightsError(f"{self.name} has no state dict at key={key!r}; it has {', '.join(map(repr, near))}")

    def read(self, key: str | None = None, map_location: MapLocation = None) -> dict[str, Tensor]:
        """All tensors of a state dict, read: on the CPU, or where `map_location` puts them."""
        tensors = {}
        for name, tensor in self.state_dict(key).items():
            with named(name):
                tensors[name] = tensor.read(map_location)
        return tensors


def open_checkpoint(source: Source, *, verify: bool = True) -> Checkpoint:
    """Open a checkpoint lazily and without running any code in it.

    However a file is made, opening it takes at most 1 GB of memory beside its own size, and a minute.

    Args:
        source: Path of a file that torch.save wrote (zip, legacy, tar), of a safetensors file, of a numpy archive
            (.npz), of a pickle of arrays, or of the index of a sharded checkpoint, whatever its suffix and compressed
            with gzip or not; a folder with one of them, or one that torch.distributed.checkpoint wrote; an
            `http(s)://` address, or `hf://organisation/repository[@revision][/file]`; a mapping of names to tensors or
            numpy arrays, nested or not; or a checkpoint that is open already.
        verify: Whether tensors of a zip file are compared with their checksums when they are read. That costs about
            twice the time of reading them; it is not done for a tensor that is a small part of its storage.

    Raises:
        FileNotFoundError: There is no such file.
        WeightsError: The file is damaged, or of a format that is not read; the message says how to convert it.
    """
    if isinstance(source, Checkpoint):
        return source
    if isinstance(source, Mapping):
        return Checkpoint("mapping", Content(_wrapped(source, 0), "mapping"))
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"source must be a path, a URL or a mapping of names to tensors, got {type(source).__name__}")
    path = fetch(str(source)) if is_remote(str(source)) else Path(source).expanduser()
    if path.is_dir() and is_distributed(path):
        return open_distributed(path, verify=verify)
    if path.is_dir():
        path = _in_folder(path)
    if not path.is_file():
        raise FileNotFoundError(_not_found(path))
    try:
        return Checkpoint(str(source), _read(SourceFile.at(path), verify))
    except WeightsError as error:
        raise WeightsError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error


def open_distributed(folder: Path, *, verify: bool = True, values: bool = False) -> Checkpoint:
    """Open a folder of torch.distributed.checkpoint, with what Lightning keeps beside it (`meta.pt`).

    Args:
        folder: The folder.
        verify: See open_checkpoint.
        values: Whether what is no tensor, such as an optimizer's settings, is read, too.

    Raises:
        WeightsError: It is damaged.
    """
    try:
        content = read_distributed(folder, verify=verify, values=values)
        extra = folder / LIGHTNINGS
        beside = _read(SourceFile.at(extra), verify).root if extra.is_file() else None
    except WeightsError as error:
        raise WeightsError(str(error) if str(folder) in str(error) else f"{folder}: {error}") from error
    except OSError as error:
        raise WeightsError(f"{folder} cannot be read: {error}") from error
    if isinstance(beside, dict) and isinstance(content.root, InertDict):
        content.root.update({name: value for name, value in beside.items() if name not in content.root})
    return Checkpoint(str(folder), content)


_READERS: dict[Format, Callable[[SourceFile], Content]] = {
    "legacy": read_torch_legacy,
    "tar": read_torch_tar,
    "pickle": read_pickle,
    "safetensors": read_safetensors,
}


def _read(file: SourceFile, verify: bool, *, shard: bool = False) -> Content:
    format_ = recognise(file)
    if format_ == "gzip":
        return _read_packed(file, verify, shard)
    if format_ in ("zip", "npz"):
        return (read_torch_zip if format_ == "zip" else read_npz)(file, verify=verify)
    if format_ != "index":
        return _READERS[format_](file)
    if shard:
        raise WeightsError(f"{file.path} is an index inside an index")
    return read_sharded(file, partial(_read, verify=verify, shard=True))


def _read_packed(file: SourceFile, verify: bool, shard: bool) -> Content:
    inside = unpacked(file)
    try:
        content = _read(inside, verify, shard=shard)
    except WeightsError as error:  # nobody knows the temporary name
        raise WeightsError(str(error).replace(str(inside.path), f"{file.path}, unpacked,")) from error
    return replace(content, format=f"{content.format} in gzip")


_SUFFIXES = (".safetensors", ".index.json", ".bin", ".pth", ".pt", ".ckpt", ".tar", ".npz", ".pkl", ".pyth", ".gz")


def _in_folder(folder: Path) -> Path:
    """The checkpoint in a folder: the index of shards, or the only file that can be one."""
    names = sorted(entry.name for entry in folder.iterdir())
    if told := how_to_convert(folder):
        raise WeightsError(told)
    found = [name for name in names if name.endswith(".index.json")] or [n for n in names if n.endswith(_SUFFIXES)]
    if len(found) == 1:
        return folder / found[0]
    listed = ", ".join(found[:5]) or "none"
    raise WeightsError(f"{folder} is a folder with {len(found)} checkpoints ({listed}): give the path of one file")


def _wrapped(value: Any, depth: int) -> Any:
    """A mapping in memory as a content: tensors and arrays get the face of those of a file; `_metadata` is kept."""
    if isinstance(value, Tensor):
        why = not_plain(value)
        return UnreadTensor(f"it is {why}", value.dtype, tuple(value.shape)) if why else MemoryTensor(value)
    if isinstance(value, np.ndarray):
        return ArrayTensor.of(value) or value
    if isinstance(value, Mapping) and depth < 20:
        wrapped = InertDict()
        wrapped.update({name: _wrapped(item, depth + 1) for name, item in value.items()})
        wrapped.attributes["_metadata"] = getattr(value, "_metadata", {})
        return wrapped
    return value


def _not_found(path: Path) -> str:
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=3)
    hint = f"; in that folder there is {', '.join(near)}" if near else ""
    return f"no checkpoint at {path}{hint}"
