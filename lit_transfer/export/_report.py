"""What an export says of itself: which file, what it takes and gives, and how near its answers are."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BOUND = 1e-4  # between the answers of the file and of the module


class ExportError(ValueError):
    """The module cannot be written in this format, or the file does not answer as the module does; none is left."""


@dataclass(frozen=True)
class Comparison:
    """The answers of a file beside those of its module.

    Attributes:
        images: How many images were compared.
        difference: The largest between two answers: of probabilities, or of numbers in standard deviations of their
            target.
        same: Images with the same class, or with the same set of labels; None where there are neither.
    """

    images: int
    difference: float
    same: int | None

    def __str__(self) -> str:
        same = "" if self.same is None else f"the same answer for {self.same} of {self.images}, "
        return f"{same}largest difference {self.difference:.1e} (allowed {BOUND:.0e})"


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        path: The file.
        to: Its format.
        bytes: Its size.
        runtime: In what it was run.
        takes: What its input is, in words.
        gives: What its output is, in words.
        source: Where the images came from on which it was compared with the module.
        comparison: How near the answers are.
        notes: What else a user of the file should know.
    """

    path: Path
    to: str
    bytes: int
    runtime: str
    takes: str
    gives: str
    source: str
    comparison: Comparison
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Give plain values, as JSON takes them."""
        values = asdict(self)
        return {**values, "path": str(self.path), **values.pop("comparison"), "notes": list(self.notes)}

    def rows(self) -> list[tuple[str, str]]:
        """Give what to print, as names beside texts."""
        return [
            ("file", f"{self.path} ({self.bytes / 1e6:.1f} MB)"),
            ("takes", self.takes),
            ("gives", self.gives),
            ("run in", self.runtime),
            ("on", self.source),
            ("beside the module", str(self.comparison)),
            *(("note", note) for note in self.notes),
        ]

    def __str__(self) -> str:
        return "\n".join(f"{name:18} {text}" for name, text in self.rows())
