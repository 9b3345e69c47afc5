"""Folders that torch.distributed.checkpoint wrote for Lightning, read whole by one process, and nothing in them is run.

Layout: as lit_transfer.weights reads it; the model's tensors lie under `state_dict` (ModelParallelStrategy) or `model`
(FSDPStrategy), the optimizers' under `optimizer_0`, `optimizer_1`, ..., and all else in `meta.pt`.
"""

import os
from pathlib import Path
from typing import Any

from lit_transfer.restore._contents import ENTRY
from lit_transfer.restore._plain import plain_root
from lit_transfer.weights import WeightsError, open_checkpoint, open_distributed

__all__ = ["gather_folder", "is_distributed_folder"]

_META = "meta.pt"
_MODEL = ("state_dict", "model")


def is_distributed_folder(path: str | os.PathLike[str]) -> bool:
    """Whether this is a folder of shards as Lightning's strategies write it."""
    return (Path(path) / ".metadata").is_file() and (Path(path) / _META).is_file()


def gather_folder(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a folder of shards into the form of a checkpoint of one process.

    Args:
        folder: One for which `is_distributed_folder` holds.

    Returns:
        What Lightning would have saved on one device; the moments of its optimizers have the parameters' names.

    Raises:
        WeightsError: It is damaged, or holds an object of a foreign class among the shards.
    """
    lost: list[str] = []
    try:
        state = plain_root(open_distributed(Path(folder), values=True), lost)
        beside = open_checkpoint(Path(folder) / _META).root
    except WeightsError as error:
        raise WeightsError(f"{folder} cannot be read: {error}") from error
    foreign = [place for place in lost if place.partition(".")[0] not in beside]
    if foreign:
        raise WeightsError(f"{folder} cannot be read: {foreign[0]} is an object of a class that is not imported")
    weights: dict[str, Any] = next((state.pop(name) for name in _MODEL if isinstance(state.get(name), dict)), {})
    numbered = [name for name in state if name.removeprefix("optimizer_").isdigit()]
    optimizers = [state.pop(name) for name in sorted(numbered, key=lambda name: (len(name), name))]
    # The groups list names here, in an order of their own: it counts, not the one that the training had.
    names = [[list(group["params"]) for group in optimizer["param_groups"]] for optimizer in optimizers]
    return {**state, "state_dict": weights, "optimizer_states": optimizers, ENTRY: {"parameter_names": names}}
