"""Opening a checkpoint: any readable file, or a mapping of names to tensors."""

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from lit_transfer.weights._content import Content
from lit_transfer.weights._errors import WeightsError
from lit_transfer.weights._layouts import StateDict, find_state_dicts
from lit_transfer.weights._lazy import MapLocation, MemoryTensor, SourceFile
from lit_transfer.weights._recognise import recognise
from lit_transfer.weights._safetensors import read_safetensors
from lit_transfer.weights._stand_ins import SAFE_GLOBALS, InertDict
from lit_transfer.weights._torch_legacy import read_torch_legacy
from lit_transfer.weights._torch_zip import read_torch_zip

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
    def foreign_globals(self) -> tuple[str, ...]:
        """Classes and functions that a full unpickler would have imported, and could have called."""
        return tuple(sorted(self.content.globals - SAFE_GLOBALS))

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
        return {name: tensor.read(map_location) for name, tensor in self.state_dict(key).items()}


def open_checkpoint(source: Source) -> Checkpoint:
    """Open a checkpoint lazily and without running any code in it.

    Args:
        source: Path of a file that torch.save wrote (zip, legacy) or of a safetensors file, whatever its suffix; a
            mapping of names to tensors, nested or not; or a checkpoint that is open already.

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
    path = Path(source).expanduser()
    if not path.is_file():
        raise FileNotFoundError(_not_found(path))
    return Checkpoint(str(path), _read(SourceFile.at(path)))


def _read(file: SourceFile) -> Content:
    format_ = recognise(file)
    if format_ == "zip":
        return read_torch_zip(file)
    if format_ == "legacy":
        return read_torch_legacy(file)
    if format_ == "safetensors":
        return read_safetensors(file)
    raise WeightsError(f"{file.path}: {format_} is not read yet")


def _wrapped(value: Any, depth: int) -> Any:
    """A mapping in memory as a content: tensors become MemoryTensors; `_metadata` is kept."""
    if isinstance(value, Tensor):
        return MemoryTensor(value)
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
