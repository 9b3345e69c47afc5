"""A module in one safetensors file: its weights, and as text what it takes to build it again."""

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import torch

from lit_transfer._entry import ENTRY
from lit_transfer.modules._saved import read_saved
from lit_transfer.weights import open_checkpoint

if TYPE_CHECKING:
    from lit_transfer.modules.transfer_module import TransferModule

SUFFIX = ".safetensors"
_HPARAMS = "hyper_parameters"


def about(module: "TransferModule") -> dict[str, Any]:
    """Give what a checkpoint says of a module beside its tensors: class, arguments, names and preprocessing.

    Returns:
        Plain values, which JSON keeps, under the two names that they have in a checkpoint.
    """
    checkpoint: dict[str, Any] = {_HPARAMS: dict(module.hparams)}
    module.on_save_checkpoint(checkpoint)
    return {name: checkpoint[name] for name in (ENTRY, _HPARAMS)}


def about_as_text(module: "TransferModule") -> dict[str, str]:
    """Give `about` as the metadata of a safetensors file, with which `load_from_checkpoint` reads that file."""
    return {ENTRY: json.dumps(about(module))}


def as_checkpoint(path: Any) -> Any:
    """Make of a safetensors file what Lightning loads; anything else is given back as it is.

    Raises:
        WeightsError: If the file is damaged.
    """
    if not isinstance(path, str | Path) or Path(path).suffix != SUFFIX or (saved := read_saved(path)) is None:
        return path
    content = {
        "pytorch-lightning_version": lightning.__version__,
        "state_dict": open_checkpoint(path).read(),
        ENTRY: saved[0],
        _HPARAMS: saved[1],
    }
    torch.save(content, buffer := io.BytesIO())  # Lightning builds modules from files alone
    buffer.seek(0)
    return buffer
