"""plan_weights and load_weights: from any source into any model."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias, get_args

from torch import nn

from lit_transfer.weights._checkpoint import Checkpoint, Source, open_checkpoint
from lit_transfer.weights._choose import Candidate, Prefer, choose, has_key
from lit_transfer.weights._classes import classes_of_file, classes_of_model, require_same_outputs
from lit_transfer.weights._draft import OnMismatch, Wishes, draft_plan
from lit_transfer.weights._edits import Edit
from lit_transfer.weights._errors import WeightsError
from lit_transfer.weights._map_location import MapLocation
from lit_transfer.weights._match import Match, find_matches
from lit_transfer.weights._patterns import renamed, require_hits, require_rename_hits
from lit_transfer.weights._plan import Plan
from lit_transfer.weights._report import LoadReport
from lit_transfer.weights._target import Target, require_module, target_of

_DRAFTS_FOR_EACH = 6
MatchBy: TypeAlias = Literal["name", "order"]


def load_weights(
    model: nn.Module,
    source: Source,
    *,
    target: str | None = None,
    key: str | None = None,
    head: Sequence[str] | None = None,
    rename: Mapping[str, str] | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    on_mismatch: OnMismatch = "adapt",
    min_coverage: float = 1.0,
    prefer: Prefer = "ema",
    match: MatchBy = "name",
    class_names: Sequence[str] | None = None,
    map_location: MapLocation = None,
) -> LoadReport:
    """Load weights from any checkpoint into any model, all or nothing; nothing in the file is run.

    The load is complete when every tensor of the model outside its head is filled or adapted, and nothing of the
    chosen state dict is left over in the modules that the model has. Anything less is an error that names the
    argument which accepts it. Parameter objects, dtypes, devices and ties of the model stay.

    Args:
        model: The model to fill, with or without a classifier.
        source: A path, an `http(s)://` or `hf://` address, a mapping of names to tensors, or what open_checkpoint
            returned.
        target: Dotted name of the submodule to fill; found if not given.
        key: Which state dict of the file, for example "teacher"; found if not given.
        head: Dotted names of modules that may stay fresh. If not given, the last Linear or 1x1 convolution that the
            file lacks or gives other rows.
        rename: Regular expression -> replacement, for names in the file that no search can know.
        include: Globs or dotted names in the model: only these are filled.
        exclude: Globs or dotted names in the model: these stay as they are, and the file's are ignored.
        on_mismatch: What to do with a tensor of another shape. "adapt" adapts it, and raises where no adaptation
            fits; "skip" leaves it as it is; "error" raises.
        min_coverage: Fraction, 0 to 1, of the model's tensors (head excepted) that must be filled.
        prefer: Which copy to take where a file holds several: "ema" the averaged one, "plain" the trained one.
        match: "name" pairs tensors by name; "order" pairs them in their order, where names differ throughout but the
            shapes are the same from the first to the last.
        class_names: The model's classes in order. Where the file names its own, the classifier's rows are chosen by
            name, and the head stays fresh if one is not there. Default: the model's attribute `class_names`.
        map_location: Where tensors of a model on the meta device are made, in torch's four forms (string, device,
            dictionary, callable). All other tensors stay on the model's device, whatever device the file names.

    Returns:
        What was loaded, renamed, adapted, left and why; print it.

    Raises:
        WeightsError: The file cannot be read, or does not fit. The model is untouched.
        FileNotFoundError: There is no such file.
    """
    plan = plan_weights(
        model,
        source,
        target=target,
        key=key,
        head=head,
        rename=rename,
        include=include,
        exclude=exclude,
        on_mismatch=on_mismatch,
        min_coverage=min_coverage,
        prefer=prefer,
        match=match,
        class_names=class_names,
    )
    return plan.apply(model, map_location=map_location)


def plan_weights(
    model: nn.Module,
    source: Source,
    *,
    target: str | None = None,
    key: str | None = None,
    head: Sequence[str] | None = None,
    rename: Mapping[str, str] | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    on_mismatch: OnMismatch = "adapt",
    min_coverage: float = 1.0,
    prefer: Prefer = "ema",
    match: MatchBy = "name",
    class_names: Sequence[str] | None = None,
) -> Plan:
    """What load_weights would do, as a value; no tensor is read and the model is not changed.

    Args:
        model: The model; it may be on the meta device.
        source: As for load_weights, and so are the other arguments.
        target: See load_weights.
        key: See load_weights.
        head: See load_weights.
        rename: See load_weights.
        include: See load_weights.
        exclude: See load_weights.
        on_mismatch: See load_weights.
        min_coverage: See load_weights.
        prefer: See load_weights.
        match: See load_weights.
        class_names: See load_weights.

    Returns:
        The plan. If it is not complete, `plan.problems` says why, and `plan.apply` raises.

    Raises:
        WeightsError: The file cannot be read, fits in several ways, or an argument names nothing.
        FileNotFoundError: There is no such file.
    """
    wishes = _wishes(head, include, exclude, on_mismatch, min_coverage)
    _require_choice("prefer", prefer, get_args(Prefer))
    _require_choice("match", match, get_args(MatchBy))
    checkpoint = open_checkpoint(source)
    slots = target_of(model)
    if target is not None:
        require_module(slots, target, "target")
    elif "head" not in wishes.exclude:
        require_same_outputs(checkpoint, model)
    matches = _all_matches(checkpoint, slots, target, rename or {}, match == "order")
    matches = _with_key(checkpoint, matches, key)
    theirs, ours = classes_of_file(checkpoint), tuple(class_names) if class_names else classes_of_model(model)
    if theirs and ours:
        wishes = replace(wishes, classes=(theirs, ours))
    candidates = [(found, draft_plan(checkpoint, found, wishes)) for found in matches]
    plan, note = choose(candidates, prefer)
    _require_patterns(candidates, wishes)
    return replace(plan, notes=(*plan.notes, note)) if note else plan


def _wishes(
    head: Sequence[str] | None,
    include: Sequence[str] | None,
    exclude: Sequence[str] | None,
    on_mismatch: OnMismatch,
    min_coverage: float,
) -> Wishes:
    for name, value in (("head", head), ("include", include), ("exclude", exclude)):
        if isinstance(value, str):
            raise TypeError(f"{name} must be a list of names, got the string {value!r}: write [{value!r}]")
    _require_choice("on_mismatch", on_mismatch, get_args(OnMismatch))
    if not 0 <= min_coverage <= 1:
        raise ValueError(f"min_coverage is a fraction from 0 to 1, got {min_coverage}")
    own_head = None if head is None else tuple(head)
    return Wishes(own_head, tuple(include or ()), tuple(exclude or ()), on_mismatch, min_coverage)


def _require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _all_matches(
    checkpoint: Checkpoint, target: Target, part: str | None, rename: Mapping[str, str], order: bool
) -> list[Match]:
    if not checkpoint.state_dicts:
        raise WeightsError(f"{checkpoint.name} holds no tensors under names: there is nothing to load")
    names = [name for state_dict in checkpoint.state_dicts for name in state_dict]
    require_rename_hits(names, rename)
    matches = []
    for state_dict in checkpoint.state_dicts:
        own = renamed(state_dict, rename) if rename else {name: name for name in state_dict}
        matches += find_matches(state_dict, own, target, part, order=order)[:_DRAFTS_FOR_EACH]
    largest = checkpoint.state_dict()
    strangers = {name: name for name in largest}
    return matches or [Match(largest, target, Edit(), part or "", part or "", {}, strangers, ())]


def _with_key(checkpoint: Checkpoint, matches: list[Match], key: str | None) -> list[Match]:
    if key is None:
        return matches
    kept = [found for found in matches if has_key(found, key)]
    if kept:
        return kept
    labels = sorted({found.label for found in matches} | {found.key for found in checkpoint.state_dicts})
    near = difflib.get_close_matches(key, labels, n=3) or labels[:5]
    raise WeightsError(
        f"key={key!r} names no state dict of {checkpoint.name} that fits; there is {', '.join(map(repr, near))}"
    )


def _require_patterns(candidates: Sequence[Candidate], wishes: Wishes) -> None:
    names = {name for found, _ in candidates for name in (*found.target.slots, *found.leftover)}
    require_hits(wishes.include, names, "include")
    require_hits(wishes.exclude, names, "exclude")
