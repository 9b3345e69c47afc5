"""What a module of this library writes into its files beside the tensors, found without importing Lightning."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_transfer.weights import Checkpoint

# One entry beside Lightning's own, of plain values only, so that torch.load(weights_only=True) reads the file.
ENTRY = "lit_transfer"


def find_entry(checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Find what `on_save_checkpoint` wrote, and the hyperparameters, without reading a tensor.

    Args:
        checkpoint: A checkpoint, or a safetensors file that `export` or `save_pretrained` wrote.

    Returns:
        Both, or None for a file that no module of this library wrote.
    """
    root = checkpoint.root
    if ENTRY in checkpoint.metadata:
        try:
            root = json.loads(checkpoint.metadata[ENTRY])
        except ValueError:  # somebody else's text under that name
            return None
    if not isinstance(root, Mapping) or not isinstance(root.get(ENTRY), Mapping):
        return None
    hparams = root.get("hyper_parameters")
    return dict(root[ENTRY]), dict(hparams) if isinstance(hparams, Mapping) else {}
