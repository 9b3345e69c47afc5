"""What a reader of a file format hands back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lit_transfer.weights._lazy import SourceFile


@dataclass(frozen=True, eq=False)
class Content:
    """The content of a file: plain values, dictionaries, stand-ins and lazy tensors.

    `globals` are the names that a full unpickler would import, each with its first call in words ("" if not called).
    """

    root: Any
    format: str
    file: SourceFile | None = None
    globals: Mapping[str, str] = field(default_factory=dict)
