"""The same weights in every format that is read, in few bytes: what the fuzz damages.

Files of 2 to 10 KB, and of up to 41 KB where a format keeps source code or a file for each tensor.
"""

import collections
import gzip
import io
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hostile_files import Payload
from legacy_tar import write_legacy_tar
from python2 import PICKLE, dumps
from small_network import network, values
from torch.distributed.checkpoint import state_dict_saver

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
            "legacy of a module": _saved(network(width=2), old=True),
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
            "distributed": _written(
                folder, lambda path: state_dict_saver.save(state, checkpoint_id=path, no_dist=True)
            ),
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


def _script(path: Path) -> None:
    torch.jit.save(torch.jit.script(network(width=2)), path / "f.pt")
