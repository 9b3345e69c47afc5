"""The plan of a load: what each tensor of the model gets, from where and why. A plain value; nothing is read yet."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from torch import nn

from lit_transfer.weights._adapt import Adaptation
from lit_transfer.weights._errors import WeightsError
from lit_transfer.weights._lazy import LazyTensor
from lit_transfer.weights._map_location import MapLocation
from lit_transfer.weights._report import LoadReport

Action: TypeAlias = Literal["load", "adapt", "fresh", "keep", "skip", "missing"]


@dataclass(frozen=True)
class Entry:
    """What one tensor of the model gets.

    Attributes:
        name: Name in the model.
        shape: Shape in the model.
        action: "load" and "adapt" fill it. "fresh" leaves a head as it is, "keep" what was excluded or needs no
            value, "skip" a mismatch that was accepted, "missing" what the file lacks.
        source: Name in the file, or None.
        source_shape: Shape in the file.
        nbytes: Bytes to read.
        reason: Why, in words.
    """

    name: str
    shape: tuple[int, ...]
    action: Action
    source: str | None = None
    source_shape: tuple[int, ...] | None = None
    nbytes: int = 0
    reason: str = ""
    tensor: LazyTensor | None = field(default=None, repr=False, compare=False)
    change: Adaptation | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "action": self.action,
            "source": self.source,
            "source_shape": None if self.source_shape is None else list(self.source_shape),
            "nbytes": self.nbytes,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Plan:
    """What a load will do. Print it, test it, export it with `to_dict`, or `apply` it.

    Attributes:
        source: Path, URL or "mapping".
        format: The file's format, in words.
        key: Place of the chosen state dict in the file.
        prefix: Prefix that is removed from the file's names.
        target: The part of the model that is filled ("" for all of it).
        edit: All edits of names, in words.
        entries: One for each tensor of that part.
        head: Modules that may stay fresh.
        unexpected: Names in the file without a place in the part.
        coverage: Fraction of the part's tensors, head and counters excepted, that will be filled.
        problems: Why the plan is refused, one sentence each; empty if it is complete.
        notes: What was decided, one sentence each.
        metadata: The modules' versions (`_metadata`), under the model's names.
    """

    source: str
    format: str
    key: str
    prefix: str
    target: str
    edit: str
    entries: tuple[Entry, ...]
    head: tuple[str, ...]
    unexpected: tuple[str, ...]
    coverage: float
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    metadata: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether the plan can be applied."""
        return not self.problems

    def check(self) -> None:
        """Raise a WeightsError with all problems if the plan is not complete."""
        if self.problems:
            raise WeightsError(f"{self.source} does not fit: " + "; ".join(self.problems))

    def apply(self, model: nn.Module, *, map_location: MapLocation = None) -> LoadReport:
        """Fill the model, all or nothing.

        Everything that can be known beforehand is checked, and everything that is computed is computed, before the
        first value changes. Only a disk that fails in the middle of a read can leave a model half filled.

        Args:
            model: The model that the plan was made for, or one with tensors of the same names and shapes.
            map_location: Where tensors on the meta device are made; all others stay on their device.

        Raises:
            WeightsError: The plan is not complete, the model is another, or the file has changed; the model is
                untouched.
        """
        from lit_transfer.weights._apply import apply_plan

        return apply_plan(self, model, map_location)

    def of(self, *actions: Action) -> tuple[Entry, ...]:
        """The entries with one of the actions."""
        return tuple(entry for entry in self.entries if entry.action in actions)

    def report(self) -> LoadReport:
        """What a load by this plan does."""
        filled = self.of("load", "adapt")
        return LoadReport(
            source=self.source,
            format=self.format,
            key=self.key,
            prefix=self.prefix,
            target=self.target,
            edit=self.edit,
            coverage=self.coverage,
            loaded=tuple(entry.name for entry in filled),
            renamed={e.name: e.source for e in filled if e.source is not None and e.source != e.name},
            adapted={entry.name: entry.reason for entry in filled if entry.reason},
            head=self.head,
            missing=tuple(entry.name for entry in self.of("missing", "fresh") if entry.source is None),
            unexpected=self.unexpected,
            mismatched={e.name: e.reason for e in self.of("skip", "fresh") if e.source is not None},
            notes=self.notes,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return {
            "source": self.source,
            "format": self.format,
            "key": self.key,
            "prefix": self.prefix,
            "target": self.target,
            "edit": self.edit,
            "coverage": self.coverage,
            "complete": self.complete,
            "problems": list(self.problems),
            "notes": list(self.notes),
            "head": list(self.head),
            "unexpected": list(self.unexpected),
            "entries": [entry.to_dict() for entry in self.entries],
        }

    def __str__(self) -> str:
        verdict = "complete" if self.complete else "refused: " + "; ".join(self.problems)
        rows = [("model", "shape", "action", "file", "why")]
        rows += [(e.name, _shape(e.shape), e.action, e.source or "", e.reason) for e in self.entries]
        rows += [("", "", "left over", name, "") for name in self.unexpected]
        return f"{self.report()}\n{'plan':<11} {verdict}\n\n" + _table(rows)


def _shape(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
