"""Arrays of JAX and Flax as torch has them: kernels transposed, attention's three projections as one, names with dots.

A Dense kernel is (in, out), a Conv kernel (height, width, in, out); attention's `query`, `key` and `value` are
(in, heads, width) with a bias (heads, width), its `out` is (heads, width, out). Layers that were scanned are stacked
along a first axis. Source: flax.linen (`Dense`, `Conv`, `MultiHeadDotProductAttention`, `scan`) and timm's
`models/vision_transformer.py` (`_load_weights`), which the tests compare with.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from lit_transfer.weights._lazy import FileTensor, LazyTensor
from lit_transfer.weights._made import MadeTensor
from lit_transfer.weights._pickled import UnreadTensor

_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_PROJECTIONS = ("query", "key", "value")
_SCANNED = re.compile(r"(^|/)encoderblock/")
_MAX_LAYERS = 1000


def is_flax(names: Mapping[str, object]) -> bool:
    """Whether the names are paths of Flax."""
    return any(name.endswith("/kernel") for name in names)


def torch_arrays(arrays: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The same values under names with dots and in torch's layout; none is read yet."""
    made: dict[str, LazyTensor] = {}
    changed = {name: _changed(array, partial(_layout, name)) for name, array in _unstacked(arrays).items()}
    for name, array in changed.items():
        place, projection, leaf = ("", "", *name.rsplit("/", 2))[-3:]
        group = [changed.get(f"{place}/{part}/{leaf}") for part in _PROJECTIONS]
        parts = [part for part in group if isinstance(part, MadeTensor)]
        alike = len({(part.dtype, part.shape[1:]) for part in parts}) == 1
        if projection not in _PROJECTIONS or len(parts) != len(_PROJECTIONS) or not alike:
            made[_name(name)] = array
        elif projection == _PROJECTIONS[0]:
            made[_name(f"{place}/in_proj_{_LEAVES.get(leaf, leaf)}")] = _joined(parts)
    return made


def _name(path: str) -> str:
    place, _, leaf = path.rpartition("/")
    return ".".join([*place.split("/"), _LEAVES.get(leaf, leaf)]) if place else leaf


def _layout(name: str, array: Tensor) -> Tensor:
    """One array in torch's layout, told by the last parts of its path and its dimensions."""
    owner, _, leaf = name.rpartition("/")
    owner = owner.rpartition("/")[2]
    if array.ndim == 4 and array.shape[:3] == (1, 1, 1) and leaf != "kernel":
        return array.flatten()  # a normalisation layer's, kept ready for broadcasting
    if owner in _PROJECTIONS and (leaf, array.ndim) in (("kernel", 3), ("bias", 2)):
        return array.flatten(1).T if leaf == "kernel" else array.flatten()
    if leaf != "kernel" or array.ndim < 2:
        return array
    if owner == "out" and array.ndim == 3:
        return array.flatten(0, 1).T
    axes = range(array.ndim)
    return array.permute(*reversed(axes[-2:]), *axes[:-2])


def _changed(array: LazyTensor, change: Callable[[Tensor], Tensor]) -> LazyTensor:
    """The array after the change; itself if that is none."""
    try:
        before = torch.empty(array.shape, dtype=torch.uint8, device="meta")
        after = change(before)
    except RuntimeError:  # sizes that no array has
        return array
    if after is before or isinstance(array, UnreadTensor):
        return array
    return MadeTensor(lambda: change(array.read()), array.dtype, tuple(after.shape))


def _joined(parts: Sequence[LazyTensor]) -> LazyTensor:
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return MadeTensor(lambda: torch.cat([part.read() for part in parts]), parts[0].dtype, shape)


def _unstacked(arrays: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Layers that were scanned under one path become numbered ones."""
    result: dict[str, LazyTensor] = {}
    for name, array in arrays.items():
        layers = array.shape[0] if _SCANNED.search(name) and array.shape else 0
        if not 0 < layers <= _MAX_LAYERS:
            result[name] = array
            continue
        for i in range(layers):
            result[_SCANNED.sub(rf"\g<1>encoderblock_{i}/", name)] = _row(array, i)
    return result


def _row(array: LazyTensor, row: int) -> LazyTensor:
    if isinstance(array, FileTensor):  # reads that row alone
        first = array.offset + row * array.stride[0]
        return replace(array, shape=array.shape[1:], stride=array.stride[1:], offset=first)
    return MadeTensor(lambda: array.read()[row], array.dtype, array.shape[1:])
