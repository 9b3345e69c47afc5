"""Writing weights: safetensors or a torch file, whole or not at all."""

import os
import uuid
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_transfer.weights._errors import WeightsError, named
from lit_transfer.weights._layouts import StateDict
from lit_transfer.weights._lazy import LazyTensor, MemoryTensor
from lit_transfer.weights._shards import size_in_bytes, split, write_shards
from lit_transfer.weights._stand_ins import as_tensor

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
ABOUT = "_about"  # attribute of a state dict in a torch file that holds the metadata; torch ignores it


def save_weights(
    model_or_state_dict: nn.Module | Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    prefix: str | None = None,
    strip: str | None = None,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
    shards: int | str | None = None,
) -> Path:
    """Write weights to a file that is complete or absent: a temporary file beside it, flushed, then renamed.

    What is written is a plain state dict, which torch, torchvision and timm load. Tied tensors are stored once, a view
    is stored without the rest of its storage, and the modules' versions (`_metadata`) are kept in torch files.

    Args:
        model_or_state_dict: A module; names and tensors; or a state dict of an opened checkpoint.
        path: Where to; `.safetensors` gives safetensors, `.pth`, `.pt`, `.bin` or `.ckpt` a torch file.
        prefix: Dotted name to put in front of every name, for example "module".
        strip: Dotted name to take away from the front of every name, for example "module" or "module.module".
        dtype: Floating-point tensors are cast to it.
        metadata: Text to keep beside the tensors, for example class names as JSON, or where the weights come from.
        shards: Largest size of a file, such as "2GB" or a number of bytes. What is larger is written as several
            safetensors files and an index (`model-00001-of-00003.safetensors`, `model.safetensors.index.json`), one of
            them in memory at a time; the index, which is what others read, is renamed last.

    Returns:
        The path; of several files that of the index.

    Raises:
        WeightsError: A name lacks the prefix to strip, or a tensor has no values.
        ValueError: The suffix is none of these, or `shards` is no size.
        OSError: The disk is full or fails; a file that was there is untouched.
    """
    path = Path(path)
    if path.suffix != ".safetensors" and path.suffix not in TORCH_SUFFIXES:
        raise ValueError(f"save_weights writes .safetensors or {', '.join(TORCH_SUFFIXES)}, got {path.name!r}")
    state = model_or_state_dict.state_dict() if isinstance(model_or_state_dict, nn.Module) else model_or_state_dict
    if not state:
        raise WeightsError("there is no tensor to save")
    edited = {_edited(name, prefix, strip): value for name, value in state.items()}
    if shards is not None:
        if path.suffix != ".safetensors":
            raise ValueError(f"shards are written as .safetensors, got {path.name!r}")
        parts = split(_sizes(edited, dtype), size_in_bytes(shards))
        if len(parts) > 1:
            return write_shards(path, parts, partial(_write_shard, edited, dtype, metadata or {}), metadata or {})
    tensors = _compact(edited, dtype)
    versions = state.metadata if isinstance(state, StateDict) else getattr(state, "_metadata", {})
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        if path.suffix == ".safetensors":
            _write_safetensors(tensors, temporary, metadata or {})
        else:
            _write_torch(tensors, temporary, _edited_versions(versions, prefix, strip), metadata or {})
        _flush(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _edited(name: str, prefix: str | None, strip: str | None) -> str:
    if strip is not None and not name.startswith(strip + "."):
        raise WeightsError(f"strip={strip!r}: {name!r} does not begin with `{strip}.`")
    inside = name[len(strip) + 1 :] if strip is not None else name
    return f"{prefix}.{inside}" if prefix else inside


def _edited_versions(known: Mapping[str, Any], prefix: str | None, strip: str | None) -> "OrderedDict[str, Any]":
    """The modules' versions under their new names; the modules that were stripped away have none."""
    edited: OrderedDict[str, Any] = OrderedDict()
    for name, entry in known.items():
        if strip is None or name == strip or name.startswith(strip + "."):
            inside = name[len(strip) + 1 :] if strip is not None else name
            edited[".".join(part for part in (prefix, inside) if part)] = entry
    return edited


def _lazy(name: str, value: Any) -> LazyTensor | None:
    """The value as a tensor that can be read; None for a module's extra state, which is none."""
    lazy = MemoryTensor(value) if isinstance(value, Tensor) else as_tensor(value)
    if isinstance(lazy, MemoryTensor) and lazy.tensor.is_meta:
        raise WeightsError(f"{name} is on the meta device: it has no values to save")
    return lazy


def _compact(state: Mapping[str, Any], dtype: torch.dtype | None) -> "OrderedDict[str, Tensor]":
    """Tensors on the CPU, cast, without the rest of their storage; equal places give the same object."""
    made: dict[object, Tensor] = {}
    tensors: OrderedDict[str, Tensor] = OrderedDict()
    for name, value in state.items():
        lazy = _lazy(name, value)
        if lazy is None:
            continue
        if lazy.place() not in made:
            with named(name):
                tensor = lazy.read("cpu")
            tensor = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
            whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
            made[lazy.place()] = tensor if whole else tensor.contiguous().clone()
        tensors[name] = made[lazy.place()]
    return tensors


def _sizes(state: Mapping[str, Any], dtype: torch.dtype | None) -> dict[str, tuple[object, int]]:
    """Name -> (place, bytes once cast)."""
    found = {}
    for name, value in state.items():
        if (lazy := _lazy(name, value)) is not None:
            width = dtype.itemsize if dtype is not None and lazy.dtype.is_floating_point else lazy.dtype.itemsize
            found[name] = (lazy.place(), lazy.nbytes // lazy.dtype.itemsize * width)
    return found


def _write_shard(
    state: Mapping[str, Any], dtype: torch.dtype | None, metadata: Mapping[str, str], names: Sequence[str], path: Path
) -> int:
    tensors = _compact({name: state[name] for name in names}, dtype)
    _write_safetensors(tensors, path, metadata)
    _flush(path)
    return sum({id(tensor): tensor.nbytes for tensor in tensors.values()}.values())


def _write_safetensors(tensors: "OrderedDict[str, Tensor]", path: Path, metadata: Mapping[str, str]) -> None:
    """Tied names are written as metadata (name -> the name that was kept), as safetensors' own save_model does."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    kept: dict[int, str] = {}
    tied = {name: kept[id(tensor)] for name, tensor in tensors.items() if kept.setdefault(id(tensor), name) != name}
    unique = {name: tensor for name, tensor in tensors.items() if name not in tied}
    try:
        save_file(unique, path, {"format": "pt", **tied, **metadata})
    except (SafetensorError, RuntimeError, ValueError) as error:
        if "I/O error" in str(error):  # the library has one class for all
            raise OSError(f"{path.parent} cannot be written to: {error}") from error
        raise WeightsError(f"safetensors cannot hold these tensors ({error}); write a .pth file") from error


def _write_torch(
    tensors: "OrderedDict[str, Tensor]", path: Path, versions: Mapping[str, Any], metadata: Mapping[str, str]
) -> None:
    if versions:
        tensors._metadata = versions  # type: ignore[attr-defined]  # where torch keeps the modules' versions
    if metadata:
        setattr(tensors, ABOUT, dict(metadata))
    try:
        torch.save(tensors, path)
    except RuntimeError as error:  # what torch makes of a full disk
        raise OSError(f"{path.parent} cannot be written to: {error}") from error


def _flush(path: Path) -> None:
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())
