"""Edits of names that may make a file's names the model's: found by search over dotted segments, never by a list.

Two kinds are searched. Segments that one side has *inside* its names and the other side nowhere are dropped
(`features.module.0`, `0._orig_mod.weight`). Prefixes at the *front* are exchanged: pairs of a file's name and a model's
name with equal shape and a common end vote for the pair of prefixes that remains.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

Shapes = Mapping[str, tuple[int, ...]]

# Wrappers that torch itself puts around modules. The search finds them without this list, save where both sides have
# them at different places.
_WRAPPERS = frozenset(
    {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "_fpw_module"}
)
_MAX_IN_BUCKET = 32


@dataclass(frozen=True)
class Edit:
    """How a file's names become the model's.

    Attributes:
        strip: Prefix of the file's names that is taken away; names without it are outside.
        add: Prefix that is put in front: the part of the model that is filled.
        drop: Segments that are dropped inside the file's names.
        unwrap: Segments that are ignored inside the model's names.
        family: What else was renamed, in words.
    """

    strip: str = ""
    add: str = ""
    drop: tuple[str, ...] = ()
    unwrap: tuple[str, ...] = ()
    family: str = ""

    def __str__(self) -> str:
        parts = [f"`{self.strip}.` removed"] if self.strip else []
        parts += [f"`{self.add}.` added"] if self.add else []
        parts += [f"`{segment}` dropped inside" for segment in self.drop]
        parts += [f"`{segment}` passed over in the model" for segment in self.unwrap]
        parts += [self.family] if self.family else []
        return ", ".join(parts) or "names as they are"

    def with_prefixes(self, strip: str, add: str) -> "Edit":
        """The same edit with other prefixes."""
        return replace(self, strip=strip, add=add)


@dataclass(frozen=True)
class View:
    """Both sides' names after segments were dropped inside: edited name -> name."""

    edit: Edit
    file: dict[str, str]
    model: dict[str, str]


def views(file: dict[str, str], own: dict[str, str], edit: Edit) -> list[View]:
    """The names as they are, and with the segments dropped that only one side has, or that are wrappers."""
    found = [View(edit, file, own)]
    file_segments, model_segments = _segments(file), _segments(own)
    inside = _inside(file, model_segments) | _wrappers_inside(file)
    outside = _inside(own, file_segments) | _wrappers_inside(own)
    for drop, unwrap in ((inside, frozenset[str]()), (frozenset[str](), outside), (inside, outside)):
        if not drop and not unwrap:
            continue
        edited, shown = _without(file, drop), _without(own, unwrap)
        if edited is not None and shown is not None and not any(v.file == edited and v.model == shown for v in found):
            found.append(View(replace(edit, drop=tuple(sorted(drop)), unwrap=tuple(sorted(unwrap))), edited, shown))
    return found


def prefix_pairs(file: Shapes, model: Shapes, limit: int = 8) -> list[tuple[str, str]]:
    """Pairs (prefix of the file's names, prefix of the model's names), the most voted first; ("", "") is among them.

    A vote is a pair of tensors of equal shape and equal last segment; the longest common end of their names is taken
    away from both.
    """
    votes: Counter[tuple[str, str]] = Counter()
    buckets: dict[tuple[str, tuple[int, ...]], list[list[str]]] = defaultdict(list)
    for name, shape in model.items():
        if not shape:
            continue  # counters: all of them are alike
        segments = name.split(".")
        buckets[segments[-1], shape].append(segments)
    asked: Counter[tuple[str, tuple[int, ...]]] = Counter()
    for name, shape in file.items():
        segments = name.split(".")
        key = (segments[-1], shape)
        asked[key] += 1
        if asked[key] <= _MAX_IN_BUCKET:
            votes.update(_remainders(segments, other) for other in buckets.get(key, [])[:_MAX_IN_BUCKET])
    return list(dict.fromkeys([*(pair for pair, _ in votes.most_common(limit)), ("", "")]))


def _remainders(name: list[str], other: list[str]) -> tuple[str, str]:
    common = 0
    while common < min(len(name), len(other)) and name[-1 - common] == other[-1 - common]:
        common += 1
    return ".".join(name[: len(name) - common]), ".".join(other[: len(other) - common])


def _segments(names: Iterable[str]) -> frozenset[str]:
    return frozenset(segment for name in names for segment in name.split(".")[:-1])


def _inside(names: Iterable[str], known: frozenset[str]) -> frozenset[str]:
    """Segments that the other side has nowhere, and that stand behind one that it has."""
    found = set()
    for name in names:
        met_known = False
        for segment in name.split(".")[:-1]:
            if segment in known:
                met_known = True
            elif met_known and not segment.isdigit():
                found.add(segment)
    return frozenset(found)


def _wrappers_inside(names: Iterable[str]) -> frozenset[str]:
    return frozenset(segment for name in names for segment in name.split(".")[1:-1] if segment in _WRAPPERS)


def _without(names: dict[str, str], dropped: frozenset[str]) -> dict[str, str] | None:
    """Names without the dropped segments; None if two become one."""
    if not dropped:
        return names
    edited = {}
    for name, original in names.items():
        segments = name.split(".")
        edited[".".join([s for s in segments[:-1] if s not in dropped] + segments[-1:])] = original
    return edited if len(edited) == len(names) else None
