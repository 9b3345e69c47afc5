"""What is in a checkpoint, and how two of them differ: plain values for `inspect`, `diff` and programs."""

import math
from typing import Any

import torch

from lit_transfer.weights._checkpoint import Checkpoint
from lit_transfer.weights._choose import main_state_dict
from lit_transfer.weights._classes import classes_of_file
from lit_transfer.weights._edits import prefix_pairs
from lit_transfer.weights._errors import named
from lit_transfer.weights._guess import looks_like
from lit_transfer.weights._layouts import StateDict, is_optimizer_state
from lit_transfer.weights._lazy import FileTensor, LazyTensor
from lit_transfer.weights._made import MadeTensor
from lit_transfer.weights._pickled import UnreadTensor
from lit_transfer.weights._stand_ins import Global, StandIn, as_tensor
from lit_transfer.weights._target import is_under

_MAX_ENTRIES = 12
_RUNNING_STATISTICS = ("running_mean", "running_var")


def describe(checkpoint: Checkpoint, *, depth: int = 2) -> dict[str, Any]:
    """What a checkpoint holds; no tensor is read.

    Args:
        checkpoint: What open_checkpoint returned.
        depth: Levels of nesting to list.

    Returns:
        Plain values that JSON can hold: `source`, `format`, `bytes`, `contents` (by nesting level), `state_dicts`
        (key, kind, tensors, parameters, bytes, dtypes, devices, prefix, looks_like, and unread: name -> why), `epoch`,
        `global_step`, `class_names`, `metadata`, `optimizer_groups`, and `would_import` and `would_call`: what a full
        unpickler would have imported, and the first call of each function in words. `parameters` counts elements
        without running statistics, integers and what is tied to another tensor.
    """
    root = checkpoint.root if isinstance(checkpoint.root, dict) else {}
    large = [found for found in checkpoint.state_dicts if len(found) > 1] or list(checkpoint.state_dicts)
    return {
        "source": checkpoint.name,
        "format": checkpoint.format,
        "bytes": _bytes(checkpoint),
        "contents": _contents(checkpoint.root, depth),
        "state_dicts": [_state_dict(found) for found in large if not is_optimizer_state(found)],
        "epoch": _number(root.get("epoch")),
        "global_step": _number(root.get("global_step")),
        "class_names": list(classes_of_file(checkpoint) or ()) or None,
        "metadata": checkpoint.metadata,
        "optimizer_groups": _optimizer_groups(root),
        "would_import": list(checkpoint.foreign_globals),
        "would_call": list(checkpoint.foreign_calls),
    }


def diff_checkpoints(
    one: Checkpoint, other: Checkpoint, *, key: str | None = None, other_key: str | None = None, tolerance: float = 0.0
) -> dict[str, Any]:
    """Compare two checkpoints tensor by tensor; one tensor of each is in memory at a time.

    Prefixes in which most names of the two sides differ are removed first; what lies outside of them is there on one
    side only. Two nan at the same place are equal.

    Args:
        one: The first checkpoint.
        other: The second checkpoint.
        key: Place of the state dict in the first; found as main_state_dict does if not given.
        other_key: The same for the second.
        tolerance: Largest absolute difference that counts as equal.

    Returns:
        Plain values that JSON can hold: `sources`, `keys`, `prefixes` and `notes` (which state dicts were compared),
        `equal` (names), `different` (name -> largest absolute difference, None where one has nan or infinity),
        `shapes` (name -> both shapes), `dtypes` (name -> both), `only_in_first`, `only_in_second`.

    Raises:
        WeightsError: There is no state dict at a key, or several that are equally likely.
    """
    (first, note), (second, other_note) = main_state_dict(one, key), main_state_dict(other, other_key)
    prefixes = _prefixes(first, second)
    ours, theirs = _inside(first, prefixes[0]), _inside(second, prefixes[1])
    notes = [f"{side.name}: {said}" for side, said in ((one, note), (other, other_note)) if said]
    result: dict[str, Any] = {
        "sources": [one.name, other.name],
        "keys": [first.key, second.key],
        "prefixes": list(prefixes),
        "notes": notes,
        "equal": [],
        "different": {},
        "shapes": {},
        "dtypes": {},
        "only_in_first": [n for n in ours if n not in theirs] + _outside(first, prefixes[0]),
        "only_in_second": [n for n in theirs if n not in ours] + _outside(second, prefixes[1]),
    }
    for name, tensor in ours.items():
        if name in theirs:
            _compare(name, tensor, theirs[name], tolerance, result)
    return result


def _compare(name: str, one: LazyTensor, other: LazyTensor, tolerance: float, result: dict[str, Any]) -> None:
    if one.dtype != other.dtype:
        result["dtypes"][name] = [_plain(one.dtype), _plain(other.dtype)]
    if one.shape != other.shape:
        result["shapes"][name] = [list(one.shape), list(other.shape)]
        return
    with named(name):
        a, b = one.read(), other.read()
    wide = _widest(a.dtype, b.dtype)
    same = a.dtype == b.dtype and torch.equal(a, b)
    if same or torch.allclose(a.to(wide), b.to(wide), rtol=0, atol=tolerance, equal_nan=True):
        result["equal"].append(name)
    else:
        gap = (a.to(wide) - b.to(wide)).abs().max().item()
        result["different"][name] = gap if math.isfinite(gap) else None


def _widest(*dtypes: torch.dtype) -> torch.dtype:
    if any(dtype.is_complex for dtype in dtypes):
        return torch.complex128
    return torch.float64 if any(dtype.is_floating_point for dtype in dtypes) else torch.int64


def _prefixes(first: StateDict, second: StateDict) -> tuple[str, str]:
    """The prefixes without which most names agree, or none at all if fewer than half of them ever do."""
    pairs = prefix_pairs({n: t.shape for n, t in first.items()}, {n: t.shape for n, t in second.items()})
    common = {pair: len(_inside(first, pair[0]).keys() & _inside(second, pair[1]).keys()) for pair in pairs}
    best = max(pairs, key=lambda pair: common[pair])
    return best if 2 * common[best] >= min(len(first), len(second)) else ("", "")


def _outside(state_dict: StateDict, prefix: str) -> list[str]:
    return [name for name in state_dict if not is_under(name, prefix)]


def _inside(state_dict: StateDict, prefix: str) -> dict[str, LazyTensor]:
    start = len(prefix) + 1 if prefix else 0
    return {name[start:]: tensor for name, tensor in state_dict.items() if is_under(name, prefix)}


def _state_dict(found: StateDict) -> dict[str, Any]:
    tensors = list(found.values())
    return {
        "key": found.key,
        "kind": found.kind,
        "tensors": len(tensors),
        "parameters": _parameters(found),
        "bytes": sum(tensor.nbytes for tensor in tensors),
        "dtypes": sorted({_plain(tensor.dtype) for tensor in tensors}),
        "devices": sorted({tensor.location for tensor in tensors}),
        "prefix": _common_prefix(found),
        "looks_like": looks_like(found),
        "unread": {name: tensor.why for name, tensor in found.items() if isinstance(tensor, UnreadTensor)},
    }


def _bytes(checkpoint: Checkpoint) -> int | None:
    """Size of the file, or of all files of a sharded checkpoint; None in memory."""
    tensors = [tensor for found in checkpoint.state_dicts for tensor in found.values()]
    files = {tensor.storage.file for tensor in tensors if isinstance(tensor, FileTensor)}
    files |= {file for tensor in tensors if isinstance(tensor, MadeTensor) for file in tensor.files}
    files |= {checkpoint.content.file} if checkpoint.content.file else set()
    return sum(file.size for file in files) if files else None


def _parameters(found: StateDict) -> int:
    places = {
        tensor.place(): tensor.nbytes // tensor.dtype.itemsize
        for name, tensor in found.items()
        if (tensor.dtype.is_floating_point or tensor.dtype.is_complex)
        and name.rpartition(".")[2] not in _RUNNING_STATISTICS
    }
    return sum(places.values())


def _shape(tensor: LazyTensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _common_prefix(found: StateDict) -> str:
    """The segments with which all names begin; a network's own first segment counts only if all lies below it."""
    paths = [name.split(".")[:-1] for name in found]
    common = paths[0]
    for path in paths:
        length = next(
            (i for i, (a, b) in enumerate(zip(common, path, strict=False)) if a != b), min(len(common), len(path))
        )
        common = common[:length]
    return ".".join(common)


def _contents(value: Any, depth: int) -> Any:
    tensor = as_tensor(value)
    if tensor is not None:
        return f"tensor {_shape(tensor)} {_plain(tensor.dtype)}"
    if isinstance(value, StandIn) and depth and value.attributes and "_modules" not in value.attributes:
        shown = _dictionary(value.attributes, depth)  # argparse.Namespace, for example
        return {"(object)": value.name, **shown} if isinstance(shown, dict) else f"object {value.name}, {shown}"
    if isinstance(value, StandIn | Global):
        return f"object {value.name}"
    if isinstance(value, dict):
        return _dictionary(value, depth)
    if isinstance(value, list | tuple):
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, str | int | float | bool) or value is None:
        return value if not isinstance(value, str) or len(value) <= 200 else f"{value[:200]}..."
    return type(value).__name__


def _dictionary(value: dict[Any, Any], depth: int) -> Any:
    tensors = {name: tensor for name, item in value.items() if (tensor := as_tensor(item)) is not None}
    if len(tensors) == len(value) > (_MAX_ENTRIES if depth else 0):
        ends = [f"{name} {_shape(tensor)}" for name, tensor in (list(tensors.items())[i] for i in (0, -1))]
        return f"{len(tensors)} tensors, {' ... '.join(ends)}" if len(tensors) > 1 else f"1 tensor, {ends[0]}"
    if depth == 0:
        return f"dictionary of {len(value)}" + (f" ({len(tensors)} tensors)" if tensors else "")
    shown = {str(name): _contents(item, depth - 1) for name, item in list(value.items())[: 4 * _MAX_ENTRIES]}
    if len(value) > len(shown):
        shown["..."] = f"{len(value) - len(shown)} more"
    return shown


def _optimizer_groups(root: dict[Any, Any]) -> list[dict[str, Any]]:
    """Number of parameters and plain settings of each parameter group of each optimizer."""
    states = [item for name, item in root.items() if isinstance(name, str) and "optim" in name]
    states += [inner for item in states if isinstance(item, list | tuple) for inner in item]
    groups = []
    for state in states:
        for group in (state.get("param_groups") or []) if isinstance(state, dict) else []:
            if isinstance(group, dict):
                plain = {k: v for k, v in group.items() if isinstance(k, str) and k != "params" and _is_setting(v)}
                groups.append({"params": len(group.get("params") or ()), **plain})
    return groups


def _is_setting(value: Any) -> bool:
    if isinstance(value, list | tuple):  # betas
        return len(value) <= 4 and all(isinstance(item, int | float) for item in value)
    return isinstance(value, int | float | str | bool)


def _number(value: Any) -> int | float | None:
    return value if isinstance(value, int | float) else None


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
