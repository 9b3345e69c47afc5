"""An entry of the store while it is written: by one process or several, over one run or several."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_transfer.features._store import FORMAT, Entry, Layout, open_entry, read_about, read_layout

__all__ = ["Filling", "prepare"]

_SYNC_SECONDS = 1.0  # how much of the work an interruption may cost


def prepare(folder: Path, key: str, layout: Layout, about: Mapping[str, Any]) -> float:
    """Make room for an entry, or find what an interrupted run left of it.

    Args:
        folder: Where entries are.
        key: Its fingerprint.
        layout: How it is to be laid out.
        about: Plain values about it, for people.

    Returns:
        Which fraction of it is there already.

    Raises:
        OSError: The disk has not enough room.
    """
    part = folder / f"{key}.part"
    known = read_about(part)
    if known is not None and read_layout(known) == layout and (part / "done.bin").stat().st_size == layout.batches:
        return float(np.fromfile(part / "done.bin", np.uint8).mean())
    shutil.rmtree(part, ignore_errors=True)
    _check_room(folder, layout)
    part.mkdir(parents=True)
    with (part / "features.bin").open("wb") as file:
        _reserve(file.fileno(), layout.size)
    (part / "done.bin").write_bytes(bytes(layout.batches))
    # Last, for without it the folder is not taken up again.
    (part / "about.json").write_text(json.dumps({**about, "format": FORMAT, "layout": asdict(layout)}))
    return 0.0


def _check_room(folder: Path, layout: Layout) -> None:
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if layout.size > 0.95 * free:
        raise OSError(
            f"{layout.rows} features of shape {layout.shape} in {layout.dtype} take {layout.size / 1e9:.1f} GB, and "
            f"{folder} has {free / 1e9:.1f} GB left. Give dtype='float16' or 'bfloat16' for half of it, another "
            "folder=, or make room with `lit-transfer cache clear`."
        )


def _reserve(file: int, size: int) -> None:
    if hasattr(os, "posix_fallocate") and size:
        os.posix_fallocate(file, 0, size)  # a disk that is full is found now, not in the middle
    else:
        os.truncate(file, size)


class Filling:
    """Writes an entry that was prepared; several processes may write one together, each its own batches."""

    def __init__(self, folder: Path, key: str, writer: int = 0) -> None:
        """Open it.

        Args:
            folder: Where entries are.
            key: The entry's fingerprint.
            writer: Number of this process.
        """
        self._folder, self._key, self._part = folder, key, folder / f"{key}.part"
        self.layout = read_layout(json.loads((self._part / "about.json").read_text()))
        # Without buffers, which would write back what another process has changed meanwhile beside a byte.
        self._features = (self._part / "features.bin").open("r+b", buffering=0)
        self._done = (self._part / "done.bin").open("r+b", buffering=0)
        self._rest = (self._part / f"rest.{writer}.jsonl").open("ab")
        if self._rest.tell():
            self._rest.write(b"\n")  # ends a line in which an earlier run was interrupted
        self._unsynced: list[int] = []
        self._synced = monotonic()

    def pending(self) -> list[int]:
        """Return the numbers of the batches that are not on disk yet."""
        done = np.fromfile(self._part / "done.bin", np.uint8)
        return [int(number) for number in np.flatnonzero(done == 0)]

    def write(self, batch: int, rows: Sequence[int], features: Tensor, rests: Sequence[str]) -> None:
        """Write a batch: its features (len(rows), *shape) and what else was in each sample, as a JSON list.

        Raises:
            ValueError: The features have another shape than the first ones had.
        """
        if tuple(features.shape[1:]) != self.layout.shape:
            raise ValueError(
                f"sample {rows[0]} has features of shape {tuple(features.shape[1:])}, the first one had "
                f"{self.layout.shape}: all images must have one size to be cached."
            )
        stored = features.detach().to("cpu", self.layout.torch_dtype).contiguous()
        for row, data in zip(rows, stored.view(len(stored), -1).view(torch.uint8).numpy(), strict=False):
            self._features.seek(row * self.layout.row_bytes)
            self._features.write(memoryview(data))
        self._rest.write(b"".join(f"{row} {rest}\n".encode() for row, rest in zip(rows, rests, strict=False)))
        self._unsynced.append(batch)
        if monotonic() - self._synced > _SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """See that what was written is on disk, and only then note it as done."""
        self._rest.flush()
        for number in (self._features.fileno(), self._rest.fileno()):
            os.fsync(number)
        for batch in self._unsynced:
            self._done.seek(batch)
            self._done.write(b"\1")
        self._unsynced, self._synced = [], monotonic()

    def close(self) -> None:
        """Sync, and close the files."""
        self.sync()
        for file in (self._features, self._rest, self._done):
            file.close()

    def discard(self) -> None:
        """Remove what was written."""
        shutil.rmtree(self._part, ignore_errors=True)

    def finish(self) -> Entry:
        """Make the entry whole, after every process has closed it; by one of them."""
        finished = open_entry(self._folder, self._key)  # another run may have been faster
        if finished is None:
            if missing := self.pending():
                raise RuntimeError(f"{len(missing)} batches of {self._part} were not written.")
            _merge(self._part, self.layout.rows)
            shutil.rmtree(self._folder / self._key, ignore_errors=True)  # damaged, if it is there
            self._part.rename(self._folder / self._key)
        finished = finished or open_entry(self._folder, self._key)
        shutil.rmtree(self._part, ignore_errors=True)
        assert finished is not None
        return finished


def _merge(part: Path, rows: int) -> None:
    """Put the lines of all processes in the order of the rows; of several for one row, the last whole one counts."""
    sources = sorted(part.glob("rest.*.jsonl"))
    # Number of the source, offset, length: in a file, since there may be many rows.
    where = np.memmap(part / "where.bin", np.int64, "w+", shape=(rows, 3))
    where[:] = -1
    for number, path in enumerate(sources):
        for row, offset, length in _lines(path):
            where[row] = number, offset, length
    if rows and where[:, 0].min() < 0:
        raise RuntimeError(f"{part} lacks the sample of row {int(where[:, 0].argmin())}.")
    files = [path.open("rb") for path in sources]
    with (part / "rest.jsonl").open("wb") as out, (part / "rest.idx").open("wb") as index:
        index.write(out.tell().to_bytes(8, sys.byteorder))
        for source, offset, length in where:
            files[source].seek(offset)
            out.write(files[source].read(length))
            index.write(out.tell().to_bytes(8, sys.byteorder))
    for file in files:
        file.close()
    for path in (*sources, part / "done.bin", part / "where.bin"):
        path.unlink()


def _lines(path: Path) -> Iterator[tuple[int, int, int]]:
    """Yield row, offset and length of the JSON in each whole line."""
    start = 0
    with path.open("rb") as file:
        for line in file:
            number, _, text = line.partition(b" ")
            if number.isdigit() and _is_whole(text):
                yield int(number), start + len(number) + 1, len(text)
            start += len(line)


def _is_whole(text: bytes) -> bool:
    try:
        return text.endswith(b"\n") and isinstance(json.loads(text), list)
    except ValueError:
        return False
