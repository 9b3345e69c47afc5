"""Files that are compressed as a whole: a temporary copy, unpacked, which is removed when nothing looks at it any more.

A torch file is read from several places, so that a stream which can only be read from its beginning is of no use.
"""

import gzip
import os
import tempfile
import weakref
import zlib
from dataclasses import replace
from pathlib import Path
from typing import IO

from lit_transfer.weights._errors import WeightsError
from lit_transfer.weights._lazy import SourceFile

GZIP = b"\x1f\x8b"
MAX_RATIO = 100  # weights come to 1 to 2, half of them zeros to 3; a bomb to 1000
ALWAYS_BYTES = 64 * 2**20  # a small file of zeros is no bomb
_CHUNK = 2**20


def unpacked(file: SourceFile) -> SourceFile:
    """A copy of a gzip-ed file, unpacked into the folder for temporary files; a megabyte of it is in memory at a time.

    Raises:
        WeightsError: It is damaged, there is no room, or it is more than 100 times larger than it was (and than 64 MB).
    """
    name = file.path.name.removesuffix(".gz")
    try:
        handle, temporary = tempfile.mkstemp(prefix="lit_transfer_", suffix=f"_{name[-100:]}")
    except OSError as error:
        raise WeightsError(_no_room(file, error)) from error
    path = Path(temporary)
    copy = _RemovedWithMe(path)
    with file.open() as packed, os.fdopen(handle, "wb") as out:
        _unpack(file, packed, out)
    return replace(SourceFile.at(path), owner=copy)


class _RemovedWithMe:
    """Removes a file when it is collected, or when Python ends; not in a process that was forked."""

    def __init__(self, path: Path) -> None:
        weakref.finalize(self, _remove, path, os.getpid())


def _remove(path: Path, process: int) -> None:
    if os.getpid() == process:
        path.unlink(missing_ok=True)


def _unpack(file: SourceFile, packed: IO[bytes], out: IO[bytes]) -> None:
    limit, written = max(MAX_RATIO * file.size, ALWAYS_BYTES), 0
    stream = gzip.GzipFile(fileobj=packed)
    while True:
        try:
            chunk = stream.read(_CHUNK)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise WeightsError(
                f"{file.path} is compressed with gzip and truncated or damaged after {written:,} unpacked bytes "
                f"({error}): copy or download it again"
            ) from error
        if not written and chunk.startswith(GZIP):
            raise WeightsError(f"{file.path} was compressed with gzip twice: unpack it with gunzip")
        written += len(chunk)
        if written > limit:
            raise WeightsError(
                f"{file.path} has {file.size:,} bytes and more than {limit:,} when it is unpacked: no checkpoint is "
                "like that; if it is one, unpack it with gunzip and give that file"
            )
        if not chunk:
            return
        try:
            out.write(chunk)
            out.flush()
        except OSError as error:
            raise WeightsError(_no_room(file, error)) from error


def _no_room(file: SourceFile, error: OSError) -> str:
    return (
        f"{file.path} cannot be unpacked into {tempfile.gettempdir()} ({error}): set TMPDIR to a folder with room, or "
        "unpack it with gunzip"
    )
