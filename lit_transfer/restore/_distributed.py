"""Folders that torch.distributed.checkpoint wrote for Lightning, read whole by one process, and nothing in them is run.

Layout: `.metadata`, a pickle of `torch.distributed.checkpoint.metadata.Metadata`; `*.distcp`, of which it tells at what
offset each piece of each tensor lies, as `torch.save` wrote it; and Lightning's `meta.pt` with all that is no tensor of
the model or the optimizers, which are there as `state_dict` and `optimizer_0`, `optimizer_1`, ...
"""

import collections
import io
import os
import pathlib
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from lit_transfer.restore._contents import ENTRY
from lit_transfer.restore._plain import plain_root
from lit_transfer.weights import WeightsError, open_checkpoint

__all__ = ["gather_folder", "is_distributed_folder"]

_META = "meta.pt"
# All that a `.metadata` names: plain records of places and shapes.
_RECORDS = {
    (room.__name__, name): getattr(room, name)
    for room, names in (
        (
            metadata,
            "Metadata MetadataIndex TensorStorageMetadata BytesStorageMetadata ChunkStorageMetadata TensorProperties "
            "StorageMeta _MEM_FORMAT_ENCODING",
        ),
        (filesystem, "_StorageInfo _StoragePrefix"),
        (pathlib, "PosixPath WindowsPath PurePosixPath PureWindowsPath"),
        (collections, "OrderedDict"),
        (torch, "Size"),
        (torch.serialization, "_get_layout"),
    )
    for name in names.split()
}


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
        WeightsError: It is damaged, or names what such a folder does not need.
    """
    state: dict[str, Any] = {}
    try:
        _load_state_dict(state, storage_reader=_Reader(folder), planner=_Planner(), no_dist=True)  # type: ignore[no-untyped-call]  # torch does not type this planner
    except CheckpointException as error:  # no Exception, and its text is a traceback
        cause = next(iter(error.failures.values()))[0]
        raise WeightsError(f"{folder} cannot be read: {cause}") from error
    rest = plain_root(open_checkpoint(Path(folder) / _META), [])
    weights = state.pop("state_dict", {})
    optimizers = [state[name] for name in sorted(state, key=lambda name: (len(name), name))]
    # The groups list names here, in an order of their own: it counts, not the one that the training had.
    names = [[list(group["params"]) for group in optimizer["param_groups"]] for optimizer in optimizers]
    return {**rest, "state_dict": weights, "optimizer_states": optimizers, ENTRY: {"parameter_names": names}}


class _Unpickler(pickle.Unpickler):
    """Builds the records of a `.metadata`, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _RECORDS:
            return _RECORDS[module, name]
        if module == "torch" and isinstance(value := getattr(torch, name, None), torch.dtype):
            return value
        raise pickle.UnpicklingError(f"its .metadata names {module}.{name}, which no record of shards is made of")


class _Reader(FileSystemReader):
    """Reads the records without running anything; torch's own unpickles them."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            records: Metadata = _Unpickler(file).load()
        return records


class _Planner(_EmptyStateDictLoadPlanner):
    """Rebuilds the dictionaries from the records; values that are no tensors are read as plain ones only."""

    def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
        plain = io.BytesIO()  # torch's own method puts the value in its place, but unpickles anything
        torch.save(torch.load(value, weights_only=True), plain)
        plain.seek(0)
        super().load_bytes(read_item, plain)
