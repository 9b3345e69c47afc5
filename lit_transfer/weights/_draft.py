"""From a match to a plan: what each tensor gets, and what stands against it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from lit_transfer.weights._adapt import adaptation, class_rows, rows_by_class, with_class_position
from lit_transfer.weights._checkpoint import Checkpoint
from lit_transfer.weights._head import find_head, is_cut_head, last_output
from lit_transfer.weights._lazy import LazyTensor
from lit_transfer.weights._match import Match
from lit_transfer.weights._patterns import chosen
from lit_transfer.weights._pickled import UnreadTensor, not_plain
from lit_transfer.weights._plan import Entry, Plan
from lit_transfer.weights._report import few
from lit_transfer.weights._target import is_counter, is_sharded, is_under_any

OnMismatch: TypeAlias = Literal["adapt", "skip", "error"]
_CLASS_TOKENS = ("cls_token", "class_token")
# Buffers that follow from the window or the picture's size, in Swin, CLIP and EVA-02.
_DERIVED = ("relative_position_index", "relative_coords_table", "attn_mask", "position_ids", "freqs_cos", "freqs_sin")


@dataclass(frozen=True)
class Wishes:
    """What the caller asked for; see load_weights."""

    head: tuple[str, ...] | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    on_mismatch: OnMismatch = "adapt"
    min_coverage: float = 1.0
    classes: tuple[tuple[str, ...], tuple[str, ...]] | None = None  # the file's, the model's

    def wants(self, name: str) -> bool:
        """Whether a tensor of that name is to be filled."""
        return (not self.include or chosen(name, self.include)) and not chosen(name, self.exclude)


def draft_plan(checkpoint: Checkpoint, match: Match, wishes: Wishes) -> Plan:
    """The plan that a match gives, with its problems."""
    head = find_head(match, wishes.head)
    output = last_output(match) if wishes.classes else None
    if output is not None and wishes.classes and wishes.classes[0] != wishes.classes[1]:
        head = tuple(dict.fromkeys([*head, output]))
    entries = _with_class_positions(_tied(match, [_entry(match, name, head, wishes) for name in match.slots]))
    stray = [name for name in match.leftover if wishes.wants(name) and not _has_leave(match, name, head)]
    coverage, accepted = _coverage(entries, head)
    problems = _problems(match, entries, stray, accepted, wishes)
    return Plan(
        source=checkpoint.name,
        format=checkpoint.format,
        key=match.state_dict.key,
        prefix=match.edit.strip,
        target=match.part,
        edit=str(match.edit),
        entries=tuple(entries),
        head=head,
        unexpected=(*match.leftover.values(), *match.outside),
        coverage=coverage,
        problems=tuple(problems),
        notes=tuple(_notes(match, stray)),
        metadata=_metadata(match),
    )


def _entry(match: Match, name: str, head: tuple[str, ...], wishes: Wishes) -> Entry:
    ours = tuple(match.slots[name].shape)
    if not wishes.wants(name):
        return Entry(name, ours, "keep", reason="excluded")
    if name not in match.pairs:
        if is_under_any(name, head):
            return Entry(name, ours, "fresh", reason="head, not in the file")
        if is_counter(name):
            return Entry(name, ours, "keep", reason="a counter that old files lack")
        if name in match.target.optional:
            return Entry(name, ours, "keep", reason="not in the file: the model's own stays")
        return Entry(name, ours, "missing")
    tensor = match.tensor(name)
    reason = "" if tensor.dtype == match.slots[name].dtype else _dtypes(tensor.dtype, match.slots[name].dtype)
    entry = Entry(name, ours, "load", match.pairs[name], tensor.shape, tensor.nbytes, reason, tensor)
    clash = _clash(tensor, match.slots[name])
    if not clash and is_under_any(name, head) and _classes_differ(wishes, tensor.shape, ours):
        return _chosen_rows(entry, wishes)
    return _other(match, entry, head, wishes, clash) if clash or tensor.shape != ours else entry


def _classes_differ(wishes: Wishes, theirs: tuple[int, ...], ours: tuple[int, ...]) -> bool:
    """Whether the rows of both sides have names, and other ones."""
    if wishes.classes is None or not theirs or not ours or theirs[1:] != ours[1:]:
        return False
    return wishes.classes[0] != wishes.classes[1] and (theirs[0], ours[0]) == tuple(map(len, wishes.classes))


def _chosen_rows(entry: Entry, wishes: Wishes) -> Entry:
    theirs, ours = wishes.classes or ((), ())
    rows = rows_by_class(theirs, ours)
    if rows is None:
        lost = [name for name in ours if name not in theirs]
        return replace(entry, action="fresh", reason=f"head, the file does not know the classes {few(lost)}")
    change = class_rows(rows)
    return replace(entry, action="adapt", reason=change.reason, change=change)


def _other(match: Match, entry: Entry, head: tuple[str, ...], wishes: Wishes, clash: str) -> Entry:
    """The entry for a tensor of another shape or kind."""
    theirs = entry.source_shape or ()
    shapes = clash or _shapes(entry)
    change = None
    if wishes.on_mismatch == "adapt" and not clash:
        owner = match.target.owner(entry.name)
        change = adaptation(entry.name, owner, theirs, entry.shape, first=_takes_images(match, entry))
    if change is not None:
        return replace(entry, action="adapt", reason=change.reason, change=change)
    if is_under_any(entry.name, head) and (wishes.on_mismatch != "error" or wishes.head is not None):
        return replace(entry, action="fresh", reason=f"head, {shapes}")
    if not isinstance(match.slots[entry.name], nn.Parameter) and entry.name.endswith(_DERIVED):
        return replace(entry, action="keep", reason=f"{shapes}; the model computes it from its own size")
    if wishes.on_mismatch == "skip":
        return replace(entry, action="skip", reason=shapes)
    return replace(entry, action="missing", reason=shapes)


def _takes_images(match: Match, entry: Entry) -> bool:
    """Whether it is the first convolution, or one beside it with its channels in both (the branches of RepVGG)."""
    first = _first_convolution(match)
    if first is None or first not in match.pairs or not entry.source_shape:
        return False
    ours, theirs = match.slots[first].shape, match.tensor(first).shape
    return entry.name == first or (entry.shape[1:2], entry.source_shape[1:2]) == (tuple(ours[1:2]), theirs[1:2])


def _first_convolution(match: Match) -> str | None:
    for name in match.slots:
        if isinstance(match.target.owner(name), nn.modules.conv._ConvNd) and name.endswith(".weight"):
            return name
    return None


def _tied(match: Match, entries: list[Entry]) -> list[Entry]:
    """A missing tensor whose other name is filled is filled."""
    filled = {id(match.slots[e.name]): e for e in entries if e.action in ("load", "adapt")}
    result = []
    for entry in entries:
        twin = filled.get(id(match.slots[entry.name]))
        if entry.action == "missing" and entry.source is None and twin is not None:
            entry = replace(twin, name=entry.name, reason=f"tied to {twin.name}")
        result.append(entry)
    return result


def _with_class_positions(entries: list[Entry]) -> list[Entry]:
    """Where a position table loses the class token's position, the token gets it; without that token none is lost."""
    tables = {_owner(e.name): e for e in entries if e.change is not None and e.change.drops_class_position}
    tokens = {_owner(e.name): e for e in entries if e.name.endswith(_CLASS_TOKENS) and e.action == "load"}
    result = []
    for entry in entries:
        table, token = tables.get(_owner(entry.name)), tokens.get(_owner(entry.name))
        if table is entry and token is None:
            entry = replace(entry, action="missing", reason=_shapes(entry), change=None)
        elif token is entry and table is not None and table.tensor is not None:
            change = with_class_position(table.tensor)
            entry = replace(entry, action="adapt", reason=change.reason, change=change)
        result.append(entry)
    return result


def _has_leave(match: Match, name: str, head: tuple[str, ...]) -> bool:
    """Whether a left-over tensor may be left over: an old head, a counter, or a part that the model does not have."""
    target = match.target
    if is_counter(name) or name in target.transient or name.endswith(_DERIVED):
        return True
    if is_under_any(name, head) or is_cut_head(match, name):
        return True
    start = len(match.part) + 1 if match.part else 0
    first = name[start:].partition(".")[0]
    if name[: start + len(first)] in target.places or name[: start + len(first)] in target.modules:
        return False
    return not (first.isdigit() and match.numbered)


def _coverage(entries: list[Entry], head: tuple[str, ...]) -> tuple[float, float]:
    """(fraction filled, the same with accepted mismatches), of what is wanted, head and counters excepted."""
    body = [e for e in entries if e.action != "keep" and not is_counter(e.name) and not is_under_any(e.name, head)]
    filled = sum(entry.action in ("load", "adapt") for entry in body)
    skipped = sum(entry.action == "skip" for entry in body)
    if not body:
        return 1.0, 1.0
    return filled / len(body), (filled + skipped) / len(body)


def _problems(match: Match, entries: list[Entry], stray: list[str], accepted: float, wishes: Wishes) -> list[str]:
    problems = []
    missing = [entry.name for entry in entries if entry.action == "missing" and entry.source is None]
    clashing = [entry for entry in entries if entry.action == "missing" and entry.source is not None]
    if not any(entry.action in ("load", "adapt") for entry in entries):
        problems.append("no tensor of it fits the model")
        missing = []  # no argument accepts that
    if clashing:
        how = "no adaptation fits" if wishes.on_mismatch == "adapt" else "on_mismatch='error'"
        problems.append(
            f"{len(clashing)} tensors differ in shape or kind and {how}: "
            f"{few(f'{e.name} ({e.reason})' for e in clashing)}; "
            f"exclude=[{clashing[0].name!r}, ...] or on_mismatch='skip' leaves them as they are"
        )
    if missing and accepted < wishes.min_coverage:
        problems.append(
            f"{len(missing)} of {len(entries)} tensors of the model are not in it: {few(missing)}; "
            f"min_coverage={math.floor(accepted * 100) / 100} accepts that"
        )
    if stray:
        problems.append(
            f"{len(stray)} tensors of it are left over in modules that the model has: {few(stray)}; "
            f"exclude={_outermost(match, stray)} accepts that"
        )
    if beside := [name for name in match.beside if wishes.wants(name)]:
        problems.append(
            f"{len(beside)} tensors of the model outside {match.part!r}, which fits, are in it under their own names: "
            f"{few(beside)}; target={match.part!r} leaves them out, and rename={{...}} brings all under one naming"
        )
    return problems


def _outermost(match: Match, stray: list[str]) -> list[str]:
    """The fewest dotted names that cover left-over tensors and none of the model's."""
    covering = []
    for name in stray:
        segments = name.split(".")
        prefixes = (".".join(segments[:depth]) for depth in range(1, len(segments) + 1))
        covering.append(next(p for p in prefixes if p == name or p not in match.target.places))
    return list(dict.fromkeys(covering))


def _notes(match: Match, stray: list[str]) -> list[str]:
    """What of the file is left over by right."""
    heads = [name for name in match.leftover if is_cut_head(match, name)]
    others = [name for name in match.leftover if name not in heads and name not in stray and not is_counter(name)]
    notes = [f"the file's classifier was left out, the model has none: {few(heads)}"] if heads else []
    if others:
        notes.append(f"parts of the file that the model does not have: {few(others)}")
    if match.outside:
        notes.append(
            f"{len(match.outside)} tensors of the file lie outside `{match.edit.strip}.`: {few(match.outside)}"
        )
    return notes


def _metadata(match: Match) -> dict[str, dict[str, Any]]:
    """The modules' versions under the model's names: of the tensors' owners, and of what encloses them."""
    known, carried = match.state_dict.metadata, {}
    for name, source in match.pairs.items() if known else ():
        ours, theirs = name.split(".")[:-1], source.split(".")[:-1]
        while (module := ".".join(ours)) not in carried:
            if ".".join(theirs) in known:
                carried[module] = known[".".join(theirs)]
            if not ours or not theirs or ours.pop() != theirs.pop():
                break
    return carried


def _clash(tensor: LazyTensor, slot: Tensor) -> str:
    """Why the values cannot be taken, whatever their shape; "" if they can."""
    if isinstance(tensor, UnreadTensor):
        return tensor.why
    if not is_sharded(slot) and (why := not_plain(slot)):
        return f"the model's is {why}, which is not filled: load before it becomes that"
    same = _kind(tensor.dtype) == _kind(slot.dtype)
    return "" if same else f"{_dtypes(tensor.dtype, slot.dtype)} would change the kind of number"


def _kind(dtype: torch.dtype) -> str:
    if dtype == torch.bool:
        return "bool"
    return "complex" if dtype.is_complex else "float" if dtype.is_floating_point else "int"


def _dtypes(theirs: torch.dtype, ours: torch.dtype) -> str:
    return f"{str(theirs).removeprefix('torch.')} to {str(ours).removeprefix('torch.')}"


def _shapes(entry: Entry) -> str:
    return f"{_shape(entry.source_shape or ())} in the file, {_shape(entry.shape)} in the model"


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"
