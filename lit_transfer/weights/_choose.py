"""Which match is meant, where a file fits in several ways."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

from lit_transfer.weights._checkpoint import Checkpoint
from lit_transfer.weights._errors import WeightsError
from lit_transfer.weights._guess import looks_like
from lit_transfer.weights._layouts import StateDict, is_optimizer_state
from lit_transfer.weights._match import Match
from lit_transfer.weights._plan import Plan
from lit_transfer.weights._target import is_counter, is_under

Prefer: TypeAlias = Literal["ema", "plain"]
Candidate: TypeAlias = tuple[Match, Plan]

# The copy of a network that follows another one slowly, in momentum contrast and BYOL.
_FOLLOWERS = {"k", "key", "momentum", "target"}


def choose(candidates: Sequence[Candidate], prefer: Prefer) -> tuple[Plan, str]:
    """The plan that is meant, and a sentence about the choice ("" if there was none).

    A complete plan is taken; of several, the averaged network before the plain one, teacher before student, query
    encoder before key encoder, a state dict before a pickled module. With `prefer="plain"`, for training that goes
    on, the averaged network and the teacher come last.

    Raises:
        WeightsError: Two fit equally well.
    """
    complete = [c for c in candidates if c[1].complete and not _part_of_better(c, candidates)]
    # The first of two that do the same stays: a module and its own state dict share their tensors.
    complete = _dominant(sorted(complete, key=lambda c: _match_rank(c[0], prefer)))
    if not complete:
        match, plan = max([c for c in candidates if not c[1].complete] or candidates, key=_nearness)
        if plan.complete:  # a small part of the model that something in the file happens to fit
            plan = replace(plan, problems=(f"it fits only {match.part!r}; target={match.part!r} accepts that",))
        return replace(plan, problems=(_diagnosis(match), *plan.problems)), ""
    first, others = complete[0], complete[1:]
    equal = [other for other in others if _match_rank(other[0], prefer) == _match_rank(first[0], prefer)]
    if equal:
        raise WeightsError(_ambiguous(first, equal[0]))
    if not others:
        return first[1], ""
    passed = ", ".join(f"key={_name(match)}" for match, _ in others)
    return first[1], f"{_name(first[0])} was chosen; the file also has {passed}"


def main_state_dict(checkpoint: Checkpoint, key: str | None = None, prefer: Prefer = "ema") -> tuple[StateDict, str]:
    """The network's state dict in a checkpoint where no model tells which one is meant, and a sentence on the choice.

    Of those that have at least half as many tensors as the largest, it is the one that `load_weights` would prefer.
    What lies in an optimizer's state comes last.

    Args:
        checkpoint: What open_checkpoint returned.
        key: Dotted place of the state dict; found if not given.
        prefer: See load_weights.

    Raises:
        WeightsError: There is none at that place, none at all, or two that are equally likely.
    """
    if key is not None or len(checkpoint.state_dicts) < 2:
        return checkpoint.state_dict(key), ""
    networks = [found for found in checkpoint.state_dicts if not is_optimizer_state(found)]
    networks = networks or list(checkpoint.state_dicts)
    largest = max(map(len, networks))
    ranked = sorted(
        (found for found in networks if 2 * len(found) >= largest), key=lambda f: _rank(f.kind, f.key, f.key, prefer)
    )
    first, others = ranked[0], ranked[1:]
    for other in others:
        if _rank(other.kind, other.key, other.key, prefer) == _rank(first.kind, first.key, first.key, prefer):
            raise WeightsError(
                f"{checkpoint.name} holds several networks, {first.key!r} ({len(first)} tensors) and {other.key!r} "
                f"({len(other)} tensors): choose with key={first.key!r} or key={other.key!r}"
            )
    passed = ", ".join(f"key={other.key!r}" for other in others)
    return first, f"{first.key!r} was chosen; the file also has {passed}" if others else ""


def _diagnosis(match: Match) -> str:
    """How far names and shapes agree, and what the file looks like."""
    own = {name: tensor for name, tensor in match.slots.items() if not is_counter(name)}
    plain = sum(
        name in match.state_dict and match.state_dict[name].shape == tuple(tensor.shape) for name, tensor in own.items()
    )
    text = f"{plain} of {len(own)} tensors match by name and shape"
    if match.fitting > plain:
        text += f"; {match.fitting} do with {match.edit}"
    words = looks_like(match.state_dict)
    return f"{text}; the file looks like {words}" if words else text


def _nearness(candidate: Candidate) -> tuple[bool, int, int]:
    match = candidate[0]
    return _plausible(match), match.fitting, -len(match.edit.strip)


def has_key(match: Match, key: str) -> bool:
    """Whether `key` names the match: a run of whole segments of its place in the file."""
    if not key:
        return not match.state_dict.key
    return f".{key}." in f".{match.label}."


def _part_of_better(candidate: Candidate, candidates: Sequence[Candidate]) -> bool:
    """Whether it fills a part, by chance or not, of what the same state dict fills better from further out."""
    match = candidate[0]
    if not _plausible(match):
        return True
    return any(
        other.state_dict is match.state_dict
        and other.fitting > match.fitting
        and other.part != match.part
        and is_under(match.part, other.part)
        for other, _ in candidates
    )


def _plausible(match: Match) -> bool:
    """Whether a part that was found holds most tensors of the model, or takes most of the file under a plain name."""
    if match.part == match.root:
        return True
    if _last(match.edit.strip).isdigit() and _last(match.edit.add).isdigit():
        return False  # one of many equal blocks of the file for another one of the model
    if 2 * len(match.slots) >= len(match.target.under(match.root)):
        return True
    numbered = any(segment.isdigit() for segment in f"{match.part}.{match.edit.strip}".split("."))
    return not numbered and 2 * (len(match.pairs) + len(match.leftover)) >= len(match.state_dict)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _dominant(candidates: list[Candidate]) -> list[Candidate]:
    """Without those that do a part of what another does, or the same."""
    work = [{(name, match.tensor(name).place()) for name in match.pairs} for match, _ in candidates]
    kept = []
    for i, candidate in enumerate(candidates):
        beaten = any(work[i] < other or (work[i] == other and j < i) for j, other in enumerate(work) if j != i)
        if not beaten:
            kept.append(candidate)
    return kept


def _match_rank(match: Match, prefer: Prefer) -> tuple[int, ...]:
    return _rank(match.state_dict.kind, match.state_dict.key, match.label, prefer)


def _rank(kind: str, key: str, label: str, prefer: Prefer) -> tuple[int, ...]:
    words = set(re.split(r"[._]", label.lower()))
    # I-JEPA and MSN save their teacher under that key, and evaluate it; BYOL's target, a prefix, is a follower.
    teacher = "teacher" in words or key.rpartition(".")[2] == "target_encoder"
    averaged, student = "ema" in words, "student" in words
    if prefer == "plain":
        averaged, teacher, student = not averaged, student, teacher
    return (
        int(kind == "module"),
        int(not averaged),
        0 if teacher else 2 if student else 1,
        int(bool(words & _FOLLOWERS)),
        int("current" in words),
    )


def _name(match: Match) -> str:
    return repr(match.label)


def _ambiguous(first: Candidate, second: Candidate) -> str:
    one, two = first[0], second[0]
    if one.label != two.label:
        return (
            f"{first[1].source} fits in two ways, from {_name(one)} ({len(one.pairs)} tensors) and from {_name(two)} "
            f"({len(two.pairs)} tensors): choose with key={_name(one)} or key={_name(two)}"
        )
    return (
        f"{first[1].source} fits two parts of the model, {one.part!r} and {two.part!r}: "
        f"choose with target={one.part!r} or target={two.part!r}"
    )
