"""Carrying out a plan: everything that can fail is done before the first byte of the model changes."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import IO, Any

import torch
from torch import Tensor, nn

from lit_transfer.weights._errors import WeightsError
from lit_transfer.weights._lazy import FileTensor, LazyTensor, SourceFile
from lit_transfer.weights._plan import Entry, Plan
from lit_transfer.weights._report import LoadReport
from lit_transfer.weights._target import target_of

_MAX_THREADS = 4  # measured: reading from the page cache gains up to the number of memory channels


def apply_plan(plan: Plan, model: nn.Module) -> LoadReport:
    """Fill the model as the plan says; all or nothing. Parameter objects, dtypes and devices stay."""
    plan.check()
    slots = target_of(model).slots
    entries = _once(plan.of("load", "adapt"), slots)
    with ExitStack() as stack, torch.no_grad():
        handles = {file: stack.enter_context(file.open()) for file in _files(entries)}
        for entry in entries:
            _tensor(entry).check(_handle(entry, handles))
        ready = [
            (entry, _value(entry, slots[entry.name])) for entry in entries if _needs_value(entry, slots[entry.name])
        ]
        direct = [entry for entry in entries if not _needs_value(entry, slots[entry.name])]
        _read_direct(direct, slots)
        for entry, value in ready:
            _put(slots[entry.name], value)
    return plan.report()


def _once(entries: Iterable[Entry], slots: dict[str, Tensor]) -> list[Entry]:
    """The entries to carry out: a tied tensor once. A plan for another model is refused."""
    wanted: dict[int, Entry] = {}
    for entry in entries:
        if entry.name not in slots or tuple(slots[entry.name].shape) != entry.shape:
            raise WeightsError(f"the plan was made for another model: this one has no {entry.name} of {entry.shape}")
        wanted.setdefault(id(slots[entry.name]), entry)
    return list(wanted.values())


def _tensor(entry: Entry) -> LazyTensor:
    if entry.tensor is None:
        raise WeightsError(f"the plan has no source for {entry.name}: it was not made by plan_weights")
    return entry.tensor


def _files(entries: Iterable[Entry]) -> set[SourceFile]:
    return {entry.tensor.storage.file for entry in entries if isinstance(entry.tensor, FileTensor)}


def _handle(entry: Entry, handles: dict[SourceFile, IO[bytes]]) -> Any:
    return handles[entry.tensor.storage.file] if isinstance(entry.tensor, FileTensor) else None


def _needs_value(entry: Entry, slot: Tensor) -> bool:
    """Whether the value is computed first: adapted ones, models on meta, and tensors that are not plain memory."""
    return entry.change is not None or slot.is_meta or not isinstance(entry.tensor, FileTensor)


def _value(entry: Entry, slot: Tensor) -> Tensor:
    value = _tensor(entry).read()
    if entry.change is not None:
        value = entry.change.run(value)
    if tuple(value.shape) != entry.shape:
        raise WeightsError(f"the adaptation of {entry.name} gave {tuple(value.shape)} instead of {entry.shape}")
    return value


def _read_direct(entries: list[Entry], slots: dict[str, Tensor]) -> None:
    """Read into the parameters' own memory, in the order of the file, by several threads where that pays."""
    threads = min(_MAX_THREADS, os.cpu_count() or 1)
    total = sum(entry.nbytes for entry in entries)
    if threads == 1 or total < 64 * 2**20:
        _read_share(entries, slots)
        return
    shares: list[list[Entry]] = [[] for _ in range(threads)]
    filled = [0] * threads
    for entry in sorted(entries, key=lambda e: -e.nbytes):
        lightest = filled.index(min(filled))
        shares[lightest].append(entry)
        filled[lightest] += entry.nbytes
    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(_read_share, share, slots) for share in shares]:
            future.result()


def _read_share(entries: list[Entry], slots: dict[str, Tensor]) -> None:
    with ExitStack() as stack, torch.no_grad():  # grad mode belongs to the thread
        handles = {file: stack.enter_context(file.open()) for file in _files(entries)}
        for entry in entries:
            slot = slots[entry.name]
            _tensor(entry).read_into(slot.detach(), _handle(entry, handles))
            torch.autograd.graph.increment_version(slot)


def _put(slot: Tensor, value: Tensor) -> None:
    if not slot.is_meta:
        slot.copy_(value)
        return
    made = torch.empty_like(slot, device="cpu").copy_(value)
    if isinstance(slot, nn.Parameter):
        made = nn.Parameter(made, requires_grad=slot.requires_grad)
    torch.utils.swap_tensors(slot, made)  # type: ignore[no-untyped-call]  # keeps the object, so that an optimizer and ties stay valid
