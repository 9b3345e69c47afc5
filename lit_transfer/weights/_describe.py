"""What is in a checkpoint, and how two of them differ: plain values for `inspect`, `diff` and programs."""

from typing import Any

import torch

from lit_transfer.weights._checkpoint import Checkpoint
from lit_transfer.weights._edits import prefix_pairs
from lit_transfer.weights._guess import looks_like
from lit_transfer.weights._layouts import StateDict
from lit_transfer.weights._lazy import FileTensor, LazyTensor, MemoryTensor
from lit_transfer.weights._stand_ins import Global, StandIn
from lit_transfer.weights._target import is_under

_MAX_ENTRIES = 12


def describe(checkpoint: Checkpoint, *, depth: int = 2) -> dict[str, Any]:
    """What a checkpoint holds; no tensor is read.

    Args:
        checkpoint: What open_checkpoint returned.
        depth: Levels of nesting to list.

    Returns:
        Plain values that JSON can hold: `source`, `format`, `bytes`, `contents` (by nesting level), `state_dicts`
        (key, kind, tensors, parameters, bytes, dtypes, devices, prefix, looks_like), `epoch`, `global_step`,
        `optimizer_groups`, and `would_import`: what a full unpickler would have imported and could have run.
    """
    root = checkpoint.root if isinstance(checkpoint.root, dict) else {}
    file = checkpoint.content.file
    large = [found for found in checkpoint.state_dicts if len(found) > 1] or list(checkpoint.state_dicts)
    return {
        "source": checkpoint.name,
        "format": checkpoint.format,
        "bytes": file.size if file is not None else None,
        "contents": _contents(checkpoint.root, depth),
        "state_dicts": [_state_dict(found) for found in large if not _is_moment(found)],
        "epoch": _number(root.get("epoch")),
        "global_step": _number(root.get("global_step")),
        "optimizer_groups": _optimizer_groups(root),
        "would_import": list(checkpoint.foreign_globals),
    }


def diff_checkpoints(
    one: Checkpoint, other: Checkpoint, *, key: str | None = None, other_key: str | None = None, tolerance: float = 0.0
) -> dict[str, Any]:
    """Compare two checkpoints tensor by tensor; one tensor of each is in memory at a time.

    Prefixes that all names of one side have, and the other side not, are removed first.

    Args:
        one: The first checkpoint.
        other: The second checkpoint.
        key: Place of the state dict in the first; the largest if not given.
        other_key: The same for the second.
        tolerance: Largest absolute difference that counts as equal.

    Returns:
        Plain values that JSON can hold: `prefixes`, `equal` (names), `different` (name -> largest absolute
        difference), `shapes` (name -> both shapes), `dtypes` (name -> both), `only_in_first`, `only_in_second`.
    """
    first, second = one.state_dict(key), other.state_dict(other_key)
    prefixes = prefix_pairs({n: t.shape for n, t in first.items()}, {n: t.shape for n, t in second.items()}, limit=1)[0]
    ours, theirs = _inside(first, prefixes[0]), _inside(second, prefixes[1])
    result: dict[str, Any] = {
        "prefixes": list(prefixes),
        "equal": [],
        "different": {},
        "shapes": {},
        "dtypes": {},
        "only_in_first": [name for name in ours if name not in theirs],
        "only_in_second": [name for name in theirs if name not in ours],
    }
    for name in ours.keys() & theirs.keys():
        _compare(name, ours[name], theirs[name], tolerance, result)
    result["equal"].sort()
    return result


def _compare(name: str, one: LazyTensor, other: LazyTensor, tolerance: float, result: dict[str, Any]) -> None:
    if one.dtype != other.dtype:
        result["dtypes"][name] = [_plain(one.dtype), _plain(other.dtype)]
    if one.shape != other.shape:
        result["shapes"][name] = [list(one.shape), list(other.shape)]
        return
    a, b = one.read(), other.read()
    if torch.equal(a, b):
        result["equal"].append(name)
        return
    wide = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
    gap = (a.to(wide) - b.to(wide)).abs().max().item()
    if gap <= tolerance:  # never true for nan
        result["equal"].append(name)
    else:
        result["different"][name] = gap


def _inside(state_dict: StateDict, prefix: str) -> dict[str, LazyTensor]:
    start = len(prefix) + 1 if prefix else 0
    return {name[start:]: tensor for name, tensor in state_dict.items() if is_under(name, prefix)}


def _state_dict(found: StateDict) -> dict[str, Any]:
    tensors = list(found.values())
    return {
        "key": found.key,
        "kind": found.kind,
        "tensors": len(tensors),
        "parameters": sum(tensor.nbytes // tensor.dtype.itemsize for tensor in tensors),
        "bytes": sum(tensor.nbytes for tensor in tensors),
        "dtypes": sorted({_plain(tensor.dtype) for tensor in tensors}),
        "devices": sorted({tensor.location for tensor in tensors}),
        "prefix": _common_prefix(found),
        "looks_like": looks_like(found),
    }


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


def _is_moment(found: StateDict) -> bool:
    """Whether this is an optimizer's state of one parameter."""
    return "state" in found.key.split(".")[:-1] and any("optim" in part for part in found.key.split("."))


def _contents(value: Any, depth: int) -> Any:
    if isinstance(value, FileTensor | MemoryTensor):
        return f"tensor {list(value.shape)} {_plain(value.dtype)}"
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
    if depth == 0 or (len(value) > _MAX_ENTRIES and all(_is_tensor(item) for item in value.values())):
        tensors = sum(_is_tensor(item) for item in value.values())
        return f"dictionary of {len(value)}" + (f" ({tensors} tensors)" if tensors else "")
    shown = {str(name): _contents(item, depth - 1) for name, item in list(value.items())[: 4 * _MAX_ENTRIES]}
    if len(value) > len(shown):
        shown["..."] = f"{len(value) - len(shown)} more"
    return shown


def _is_tensor(value: Any) -> bool:
    return isinstance(value, FileTensor | MemoryTensor)


def _optimizer_groups(root: dict[Any, Any]) -> list[dict[str, Any]]:
    """Number of parameters and plain settings of each parameter group of each optimizer."""
    states = [item for name, item in root.items() if isinstance(name, str) and "optim" in name]
    states += [inner for item in states if isinstance(item, list | tuple) for inner in item]
    groups = []
    for state in states:
        for group in (state.get("param_groups") or []) if isinstance(state, dict) else []:
            if isinstance(group, dict):
                plain = {
                    k: v for k, v in group.items() if isinstance(k, str) and isinstance(v, int | float | str | bool)
                }
                groups.append({"params": len(group.get("params") or ()), **plain})
    return groups


def _number(value: Any) -> int | float | None:
    return value if isinstance(value, int | float) else None


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
