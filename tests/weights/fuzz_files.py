"""The same weights in every format that is read, in few bytes: what the fuzz damages.

Files of at most 10 KB each: a module is saved without the sources of its classes, as it is where they cannot be found,
a TorchScript archive with one of its files of code, and a folder with a file for each tensor.
"""

import collections
import gzip
import io
import pickle
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from hostile_files import Payload
from legacy_tar import write_legacy_tar
from python2 import PICKLE, dumps
from small_network import network, values
from torch import nn
from torch.distributed.checkpoint import FileSystemWriter, state_dict_saver

from lit_transfer.weights import save_weights

Files = dict[str, bytes]
"""A file by the name "", or the files of a folder by theirs."""


def base_files(folder: Path) -> dict[str, Files]:
    """Write the weights of `network(width=2)` in every format, by its name; `folder` is empty and stays to be used."""
    state = values(network(width=2))
    floats = collections.OrderedDict((name, tensor) for name, tensor in state.items() if tensor.is_floating_point())
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    lightning = {"epoch": 3, "state_dict": {f"net.{k}": v for k, v in state.items()}, "hyper_parameters": {"lr": 0.1}}
    hostile = {"state_dict": state, "callbacks": Payload(folder / "executed")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own: of TorchScript, and of a process that is alone
        return {
            "zip": _saved(lightning),
            "zip with code": _saved(hostile),
            "legacy": _saved(state, old=True),
            "legacy with code": _saved(hostile, old=True),
            "legacy of a module": _without_sources(network(width=2)),
            "legacy of Python 2": _saved(state, old=True, pickle_module=PICKLE),
            "legacy tar": _written(folder, lambda path: write_legacy_tar(floats, path / "f")),
            "safetensors": _written(folder, lambda path: save_weights(state, path / "f.safetensors")),
            "shards": _written(folder, lambda path: save_weights(state, path / "f.safetensors", shards=700)),
            "gzip": {"": gzip.compress(_saved(state)[""], mtime=0)},
            "npz": _written(folder, lambda path: np.savez(path / "f.npz", **arrays)),
            "packed npz": _written(folder, lambda path: np.savez_compressed(path / "f.npz", **arrays)),
            "pickle of arrays": {"": pickle.dumps({"model": arrays, "__author__": "nobody"})},
            "Python 2 pickle": {"": dumps({"blobs": floats_of(arrays)})},
            "TorchScript": _written(folder, _script),
            "distributed": _written(folder, partial(_distributed, state)),
        }


def floats_of(arrays: dict[str, Any]) -> dict[str, Any]:
    """Those of floating point, as Caffe2 has no others."""
    return {name: array for name, array in arrays.items() if array.dtype.kind == "f"}


def _saved(content: Any, *, old: bool = False, **options: Any) -> Files:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=not old, **options)
    return {"": stream.getvalue()}


def _written(folder: Path, write: Callable[[Path], object]) -> Files:
    """Take what something writes into an empty folder; a file that is alone is one without a folder."""
    path = folder / str(len(list(folder.iterdir())))
    path.mkdir()
    write(path)
    files = {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}
    return files if len(files) > 1 else {"": next(iter(files.values()))}


def _without_sources(model: nn.Module) -> Files:
    with mock.patch("torch.serialization.get_source_lines_and_file", side_effect=OSError):
        return _saved(model, old=True)


def _distributed(state: dict[str, torch.Tensor], path: Path) -> None:
    writer = FileSystemWriter(path, single_file_per_rank=False)
    state_dict_saver.save(state, storage_writer=writer, no_dist=True)


def _script(path: Path) -> None:
    """Code is what is not read of such a file: one piece of it is kept, without its table for debuggers."""
    stream = io.BytesIO()
    torch.jit.save(torch.jit.script(network(width=2)), stream)
    with zipfile.ZipFile(stream) as whole, zipfile.ZipFile(path / "f.pt", "w") as small:
        names = [name for name in whole.namelist() if "/code/" not in name]
        names += [name for name in whole.namelist() if name.endswith("linear.py")]
        for name in names:
            small.writestr(name, whole.read(name))
