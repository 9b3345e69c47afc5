"""Features on disk: one memory-mapped file for each boundary and split, and what else was in the samples.

An entry is a folder named by a fingerprint. It holds `features.bin` (the rows, one after the other, without header),
`rest.jsonl` (what else was in the sample of each row, one JSON list a line), `rest.idx` (where each line begins, int64,
and where the last one ends) and `about.json`. While it is being filled its name ends in `.part`, `done.bin` has a byte
for each batch that is on disk, and every process appends to a `rest.N.jsonl` of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["FORMAT", "Entry", "Layout", "cache_folder", "list_entries", "open_entry", "read_about", "read_layout"]

FORMAT = 1


def cache_folder(kind: str = "features") -> Path:
    """Return where something is kept, below `LIT_TRANSFER_CACHE`, else below lit_transfer in the user's caches."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LIT_TRANSFER_CACHE") or Path(base) / "lit_transfer") / kind


@dataclass(frozen=True)
class Layout:
    """How an entry is laid out.

    Attributes:
        rows: Number of features.
        shape: Shape of each.
        dtype: Name of their dtype in torch.
        batches: In how many batches they are computed.
    """

    rows: int
    shape: tuple[int, ...]
    dtype: str
    batches: int

    @property
    def row_bytes(self) -> int:
        """Size of one feature."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.torch_dtype.itemsize

    @property
    def size(self) -> int:
        """Size of all features in bytes."""
        return self.rows * self.row_bytes

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype itself."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found


class Entry:
    """A complete entry; its files are opened when they are first read, in each process anew.

    Attributes:
        path: Its folder.
        layout: How it is laid out.
        about: What was written about it when it was made.
    """

    def __init__(self, path: Path, layout: Layout, about: Mapping[str, Any]) -> None:
        self.path, self.layout, self.about = path, layout, about

    def __getstate__(self) -> dict[str, Any]:
        mapped = {"_features", "_offsets", "_rest"}
        return {name: value for name, value in self.__dict__.items() if name not in mapped}

    # Plain arrays over the mapped files: numpy's own class for these takes longer to index than to read.
    @cached_property
    def _features(self) -> np.ndarray[Any, Any]:
        shape = (self.layout.rows, self.layout.row_bytes)
        return np.asarray(np.memmap(self.path / "features.bin", np.uint8, "r", shape=shape))

    @cached_property
    def _offsets(self) -> np.ndarray[Any, Any]:
        return np.asarray(np.memmap(self.path / "rest.idx", np.int64, "r"))

    @cached_property
    def _rest(self) -> np.ndarray[Any, Any]:
        return np.asarray(np.memmap(self.path / "rest.jsonl", np.uint8, "r"))

    def feature(self, row: int) -> Tensor:
        """Read one feature."""
        return self.features([row])[0]

    def features(self, rows: Sequence[int]) -> Tensor:
        """Read several features, (len(rows), ...)."""
        # Indexed by a list, an array is copied: nobody writes into the file.
        return (
            torch.from_numpy(self._features[list(rows)])
            .view(self.layout.torch_dtype)
            .view(len(rows), *self.layout.shape)
        )

    def rest(self, row: int) -> list[Any]:
        """Read what else was in the sample, as JSON holds it."""
        found: list[Any] = json.loads(self._rest[self._offsets[row] : self._offsets[row + 1]].tobytes())
        return found


def open_entry(folder: Path, key: str) -> Entry | None:
    """Open an entry if it is there and whole."""
    about = read_about(folder / key)
    if about is None:
        return None
    layout = read_layout(about)
    sizes = {"features.bin": layout.size, "rest.idx": 8 * (layout.rows + 1)}
    if any(_size(folder / key / name) != size for name, size in sizes.items()):
        return None
    os.utime(folder / key / "about.json")  # when it was used last
    return Entry(folder / key, layout, about)


def list_entries(folder: Path) -> list[tuple[Path, dict[str, Any], float]]:
    """List what is in a folder of entries.

    Returns:
        For each entry, complete or not: its folder, what is known about it, and which fraction of it is done.
    """
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        about = read_about(path)
        if about is not None:
            done = float(np.fromfile(path / "done.bin", np.uint8).mean()) if path.suffix == ".part" else 1.0
            found.append((path, about, done))
    return found


def read_about(path: Path) -> dict[str, Any] | None:
    """Return what is known about the entry in a folder; None if it is no entry of this format."""
    try:
        found: dict[str, Any] = json.loads((path / "about.json").read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("format") == FORMAT else None


def read_layout(about: Mapping[str, Any]) -> Layout:
    """Return the layout out of what is known about an entry."""
    given = about["layout"]
    return Layout(given["rows"], tuple(given["shape"]), given["dtype"], given["batches"])


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1
