"""Carrying out a plan: everything that can fail is done before the first byte of the model changes."""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from typing import IO, Any

import torch
from torch import Tensor, nn

from lit_transfer.weights._checksums import verify
from lit_transfer.weights._errors import WeightsError, named
from lit_transfer.weights._lazy import FileTensor, LazyTensor, SourceFile
from lit_transfer.weights._map_location import MapLocation
from lit_transfer.weights._own_part import distribute, read_own_part
from lit_transfer.weights._plan import Entry, Plan
from lit_transfer.weights._report import LoadReport, few
from lit_transfer.weights._target import is_sharded, target_of


def apply_plan(plan: Plan, model: nn.Module, map_location: MapLocation = None) -> LoadReport:
    """Fill the model as the plan says; all or nothing. Parameter objects, dtypes and devices stay."""
    plan.check()
    slots = target_of(model).slots
    entries = _once(plan.of("load", "adapt"), slots)
    direct = [entry for entry in entries if not _needs_value(entry, slots[entry.name])]
    computed = [entry for entry in entries if _needs_value(entry, slots[entry.name])]
    with ExitStack() as stack, torch.no_grad():
        handles = {file: stack.enter_context(file.open()) for file in _files(entries)}
        for entry in entries:
            with named(entry.source or entry.name):
                _tensor(entry).check(_handle(entry, handles))
        _require_ties(plan.of("load", "adapt"), slots)
        verify((entry.source or entry.name, _tensor(entry)) for entry in direct)  # the others' reads verify
        values = [_value(entry, slots[entry.name], map_location) for entry in computed]
        for entry in direct:  # one thread: two or four were not faster from the page cache
            slot = slots[entry.name]
            _tensor(entry).read_into(slot.detach(), _handle(entry, handles))
            torch.autograd.graph.increment_version(slot)
        for entry, value in zip(computed, values, strict=True):
            _put(slots[entry.name], value)
    report = plan.report()
    empty = [name for name, slot in slots.items() if slot.is_meta]
    return replace(report, notes=(*report.notes, f"still on the meta device: {few(empty)}")) if empty else report


def _once(entries: Iterable[Entry], slots: dict[str, Tensor]) -> list[Entry]:
    """The entries to carry out: a tied tensor once. A plan for another model is refused."""
    wanted: dict[int, Entry] = {}
    for entry in entries:
        if entry.name not in slots or tuple(slots[entry.name].shape) != entry.shape:
            raise WeightsError(f"the plan was made for another model: this one has no {entry.name} of {entry.shape}")
        wanted.setdefault(id(slots[entry.name]), entry)
    return list(wanted.values())


def _require_ties(entries: Iterable[Entry], slots: dict[str, Tensor]) -> None:
    """Raise a WeightsError if what is one tensor in the model is two in the file, with other values."""
    first: dict[int, Entry] = {}
    for entry in entries:
        kept = first.setdefault(id(slots[entry.name]), entry)
        one, other = _tensor(kept), _tensor(entry)
        if one.place() != other.place() and not torch.equal(one.read(), other.read()):
            raise WeightsError(
                f"{kept.name} and {entry.name} are one tensor in the model, and two with other values in the file "
                f"({kept.source} and {entry.source}): exclude=[{entry.name!r}] takes the first"
            )


def _tensor(entry: Entry) -> LazyTensor:
    if entry.tensor is None:
        raise WeightsError(f"the plan has no source for {entry.name}: it was not made by plan_weights")
    return entry.tensor


def _files(entries: Iterable[Entry]) -> set[SourceFile]:
    return {entry.tensor.storage.file for entry in entries if isinstance(entry.tensor, FileTensor)}


def _handle(entry: Entry, handles: dict[SourceFile, IO[bytes]]) -> Any:
    return handles[entry.tensor.storage.file] if isinstance(entry.tensor, FileTensor) else None


def _needs_value(entry: Entry, slot: Tensor) -> bool:
    """Whether the value is computed first: adapted ones, models on meta or in shards, and what is in memory."""
    return entry.change is not None or slot.is_meta or is_sharded(slot) or not isinstance(entry.tensor, FileTensor)


def _value(entry: Entry, slot: Tensor, map_location: MapLocation) -> Tensor:
    """The value that a tensor gets. For one on meta it is a new tensor of its dtype, where `map_location` says."""
    tensor = _tensor(entry)
    with named(entry.source or entry.name):
        if is_sharded(slot) and entry.change is None and (part := read_own_part(tensor, slot)) is not None:
            return part
        value = tensor.read(map_location) if slot.is_meta else tensor.read()
    if entry.change is not None:
        value = entry.change.run(value)
    if tuple(value.shape) != entry.shape:
        raise WeightsError(f"the adaptation of {entry.name} gave {tuple(value.shape)} instead of {entry.shape}")
    if is_sharded(slot):
        return distribute(entry.name, value, slot)
    return torch.empty_like(slot, device=value.device).copy_(value) if slot.is_meta else value


def _put(slot: Tensor, value: Tensor) -> None:
    if not slot.is_meta:
        slot.copy_(value)
        return
    made = nn.Parameter(value, requires_grad=slot.requires_grad) if isinstance(slot, nn.Parameter) else value
    # Keeps the object, so that an optimizer and ties stay valid.
    torch.utils.swap_tensors(slot, made)  # type: ignore[no-untyped-call]  # torch has no hints there
