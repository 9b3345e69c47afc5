"""What a module adds to its checkpoints, and what it reads back: class, hyperparameters, what the data told."""

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info

from lit_transfer._entry import find_entry
from lit_transfer.weights import open_checkpoint


def read_saved(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Read what `on_save_checkpoint` wrote, and the hyperparameters, without reading a tensor.

    Args:
        path: A checkpoint, or a safetensors file that `export` or `save_pretrained` wrote.

    Returns:
        Both, or None for a checkpoint that no module of this library wrote.

    Raises:
        WeightsError: If the file is damaged.
    """
    return find_entry(open_checkpoint(path))


def class_path(module: LightningModule) -> str:
    """Give the dotted path under which a module's class is imported."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def resolve_class(path: str, base: type[LightningModule]) -> type[LightningModule]:
    """Find the class that was saved, which must be `base`, or a subclass or superclass of it.

    Args:
        path: Dotted path from the checkpoint.
        base: The class on which `load_from_checkpoint` was called.

    Returns:
        The saved class, or `base` where `base` is derived from the saved one.

    Raises:
        ImportError: If the saved class cannot be imported.
        TypeError: If it is not related to `base`.
    """
    for known in _family(base):
        if f"{known.__module__}.{known.__qualname__}" == path:
            return known
    module_name, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ImportError(
            f"The checkpoint holds a {path}, which cannot be imported here ({error}). "
            "Import the module that defines it first, or call load_from_checkpoint on that class."
        ) from error
    if isinstance(found, type) and issubclass(found, base):
        return found
    if isinstance(found, type) and issubclass(base, found):
        return base
    raise TypeError(
        f"The checkpoint holds a {path}, which is no {base.__name__}: call load_from_checkpoint on that class."
    )


def _family(base: type[LightningModule]) -> list[type[LightningModule]]:
    return [base, *(child for direct in base.__subclasses__() for child in _family(direct))]


def outermost_init(module: LightningModule) -> FrameType | None:
    """Find the frame of the `__init__` that the caller called, whose arguments are all it takes to build it again.

    Lightning collects the arguments of every `__init__` on the way up; a subclass that fixes an argument of its
    parent would then be rebuilt with that argument given twice.
    """
    frame, found = inspect.currentframe(), None
    while frame is not None:
        if frame.f_code.co_name == "__init__" and next(iter(frame.f_locals.values()), None) is module:
            found = frame
        frame = frame.f_back
    return found


def plain_hparams(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the hyperparameters that `torch.load(weights_only=True)` reads back; say which ones are left out."""
    kept = {name: _plain(value) for name, value in hparams.items() if _is_plain(value)}
    if dropped := sorted(set(hparams) - set(kept)):
        rank_zero_info(
            f"Not saved as hyperparameters, since they are no plain values: {', '.join(dropped)}. "
            "Pass them to load_from_checkpoint."
        )
    return kept


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain(item) for item in (*value.keys(), *value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (str, int, float, bool) or isinstance(value, Path)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
