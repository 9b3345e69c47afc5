"""What a reader of a file format hands back."""

from dataclasses import dataclass
from typing import Any

from lit_transfer.weights._lazy import SourceFile


@dataclass(frozen=True, eq=False)
class Content:
    """The content of a file: plain values, dictionaries, stand-ins and lazy tensors."""

    root: Any
    format: str
    file: SourceFile | None = None
    globals: frozenset[str] = frozenset()
