"""What a load did: a value for programs, and a table for people."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class LoadReport:
    """What was loaded, renamed, adapted, left fresh and left over.

    Attributes:
        source: Path, URL or "mapping".
        format: The file's format, in words.
        key: Place of the chosen state dict in the file ("" at the top).
        prefix: Prefix that was removed from the file's names.
        target: The part of the model that was filled ("" for all of it).
        edit: All edits of names, in words.
        coverage: Fraction of the part's tensors, head and counters excepted, that were filled.
        loaded: Names in the model that were filled, adapted ones included.
        renamed: Name in the model -> name in the file, where they differ.
        adapted: Name in the model -> reason, where the shape or the dtype differed.
        head: Modules that stayed fresh or could have.
        missing: Names in the model that stayed as they were, the head's included.
        unexpected: Names in the file that have no place in the part, the old head's included.
        mismatched: Name in the model -> shapes, where they differ and the tensor stayed as it was.
        notes: What else was decided, one sentence each.
    """

    source: str
    format: str
    key: str
    prefix: str
    target: str
    edit: str
    coverage: float
    loaded: tuple[str, ...]
    renamed: dict[str, str]
    adapted: dict[str, str]
    head: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: dict[str, str]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        plain = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}

    def rows(self) -> list[tuple[str, str]]:
        """Titles and texts for people, without those that have nothing to tell."""
        rows = [
            ("from", f"{self.source} ({self.format})" + (f", key {self.key!r}" if self.key else "")),
            ("into", self.target or "the whole model"),
            ("names", self.edit),
            ("loaded", f"{len(self.loaded)} tensors, coverage {self.coverage:.1%}"),
            ("adapted", few(f"{name}: {reason}" for name, reason in self.adapted.items())),
            ("head", few(self.head)),
            ("missing", few(self.missing)),
            ("mismatched", few(f"{name}: {shapes}" for name, shapes in self.mismatched.items())),
            ("unexpected", few(self.unexpected)),
            *(("note", note) for note in self.notes),
        ]
        return [(title, text) for title, text in rows if text]

    def __str__(self) -> str:
        return "\n".join(f"{title:<11} {text}" for title, text in self.rows())


def few(names: Iterable[str], limit: int = 4) -> str:
    """The first names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
