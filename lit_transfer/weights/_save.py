"""Writing weights: safetensors or a torch file, whole or not at all."""

import os
import tempfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_transfer.weights._errors import WeightsError


def save_weights(
    model_or_state_dict: nn.Module | Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    prefix: str | None = None,
    strip: str | None = None,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write weights to a file that is complete or absent: a temporary file beside it, flushed, then renamed.

    Args:
        model_or_state_dict: A module, or names and tensors.
        path: Where to; `.safetensors` gives safetensors, `.pth`, `.pt`, `.bin` or `.ckpt` a torch file.
        prefix: Dotted name to put in front of every name, for example "module".
        strip: Dotted name to take away from the front of every name.
        dtype: Floating-point tensors are cast to it.
        metadata: Text to keep beside the tensors (safetensors only).

    Returns:
        The path.

    Raises:
        WeightsError: A name lacks the prefix to strip, or two names become one.
        ValueError: The suffix is none of these.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".pth", ".pt", ".bin", ".ckpt"):
        raise ValueError(f"save_weights writes .safetensors or .pth, got {path.name!r}")
    state = model_or_state_dict.state_dict() if isinstance(model_or_state_dict, nn.Module) else model_or_state_dict
    tensors = _edited(state, prefix, strip)
    if dtype is not None:
        tensors = OrderedDict((n, t.to(dtype) if t.is_floating_point() else t) for n, t in tensors.items())
    versions = _edited_metadata(getattr(state, "_metadata", {}), prefix, strip)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        _write(tensors, versions, temporary, path.suffix, metadata)
        _flush(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _edited(state: Mapping[str, Any], prefix: str | None, strip: str | None) -> "OrderedDict[str, Tensor]":
    edited: OrderedDict[str, Tensor] = OrderedDict()
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            continue
        if strip is not None and not name.startswith(strip + "."):
            raise WeightsError(f"strip={strip!r}: {name} does not begin with it")
        new = name[len(strip) + 1 :] if strip is not None else name
        edited[f"{prefix}.{new}" if prefix else new] = tensor.detach().cpu()
    return edited


def _edited_metadata(known: Mapping[str, Any], prefix: str | None, strip: str | None) -> "OrderedDict[str, Any]":
    edited: OrderedDict[str, Any] = OrderedDict()
    for name, entry in known.items():
        if strip is not None and name != strip and not name.startswith(strip + "."):
            continue
        new = name[len(strip) + 1 :] if strip is not None else name
        edited[".".join(part for part in (prefix or "", new) if part)] = entry
    return edited


def _write(
    tensors: "OrderedDict[str, Tensor]",
    versions: "OrderedDict[str, Any]",
    path: Path,
    suffix: str,
    metadata: Mapping[str, str] | None,
) -> None:
    if suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file({n: t.clone().contiguous() for n, t in tensors.items()}, path, {"format": "pt", **(metadata or {})})
        return
    if versions:
        tensors._metadata = versions  # type: ignore[attr-defined]  # where torch keeps the modules' versions
    torch.save(tensors, path)


def _flush(path: Path) -> None:
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())
