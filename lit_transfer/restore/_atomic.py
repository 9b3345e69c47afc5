"""Checkpoint files that are whole or absent, and that tell whether they are whole.

A file is written beside its place, flushed to the disk and renamed, and the folder is flushed: after a crash there is
the old file or the new one. The checksum is the comment of the zip file that `torch.save` writes, so that the file
stays one that torch and any zip tool reads: `lit_transfer sha256 HEX`, over all bytes as torch.save wrote them.
Layout of the end of a zip file: APPNOTE.TXT 4.3.16; the last two bytes are the length of the comment.
"""

import contextlib
import errno
import glob
import hashlib
import io
import os
import uuid
import zipfile
from pathlib import Path
from typing import Any

import torch

_MARK = b"lit_transfer sha256 "
_COMMENT = len(_MARK) + 64  # the digest in hexadecimal
_CHUNK = 2**20


def save_atomically(content: Any, path: str | os.PathLike[str]) -> None:
    """Write what `torch.save` writes, whole or not at all, with a checksum.

    Args:
        content: What to write.
        path: Where to; missing folders are made.

    Raises:
        OSError: The disk is full, the folder is read-only, or the like; a file of that name is as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_over(path)
        _write(content, temporary)
        os.replace(temporary, path)  # noqa: PTH105  # the tests interrupt each call that touches the disk, here
        _flush_folder(path.parent)
    except OSError as error:
        raise _explained(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def damage(path: str | os.PathLike[str]) -> str | None:
    """Say what is wrong with a file, or give None where nothing is, or nothing can be found out.

    Read are the checksum that `save_atomically` wrote, or, in a zip file that somebody else wrote, the checksum of each
    member. Of a file that is no zip file it is only known whether it is empty.
    """
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        if size == 0:
            return "it is empty"
        if file.read(4) != b"PK\x03\x04":
            return None
        file.seek(max(0, size - _COMMENT - 22))
        end = file.read()
        if (place := end.rfind(b"PK\x05\x06")) >= 0 and end[place + 20 :][:2] != _length(end[place + 22 :]):
            return "it is cut off"  # within the comment, which zip readers let pass
        comment = end[-_COMMENT:]
        if comment.startswith(_MARK):
            whole = _digest(file, size - _COMMENT) == comment[len(_MARK) :].decode("ascii", "replace")
            return None if whole else "its checksum does not fit its content"
    return _damaged_member(path)


class _Stream(io.RawIOBase):
    """Writes to a file descriptor, adds up the digest, and keeps the error that torch would bury in one of its own."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.digest = descriptor, hashlib.sha256()
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        try:
            done = os.write(self.descriptor, view)
        except OSError as error:
            self.error = self.error or error
            raise
        self.digest.update(view[:done])
        return done


def _write(content: Any, path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        stream = _Stream(descriptor)
        try:
            buffer = io.BufferedWriter(stream, _CHUNK)
            torch.save(content, buffer)
            buffer.flush()
        except Exception:
            if stream.error is not None:
                raise stream.error from None
            raise
        os.lseek(descriptor, -2, os.SEEK_END)
        comment = _MARK + stream.digest.hexdigest().encode()
        os.write(descriptor, _length(comment) + comment)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(file: Any, size: int) -> str:
    """The digest of a file's first `size` bytes, whose last two are taken as zero: no comment."""
    file.seek(0)
    digest, left = hashlib.sha256(), size - 2
    while left > 0 and (chunk := file.read(min(left, _CHUNK))):
        digest.update(chunk)
        left -= len(chunk)
    digest.update(b"\0\0")
    return digest.hexdigest()


def _length(comment: bytes) -> bytes:
    return len(comment).to_bytes(2, "little")


def _damaged_member(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        return f"it is cut off or overwritten ({error})"
    return None if bad is None else f"the checksum of its member {bad!r} does not fit"


def _remove_left_over(path: Path) -> None:
    """Remove what writers of the same file left that were killed."""
    for left_over in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        left_over.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Let the renaming reach the disk; Windows does so by itself and opens no folders."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explained(error: OSError, path: Path) -> OSError:
    reasons = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the quota is used up",
        errno.EFBIG: "files may not grow so large here",
        errno.EROFS: "the file system is read-only",
        errno.EACCES: "the folder may not be written to",
        errno.EPERM: "the folder may not be written to",
    }
    reason = reasons.get(error.errno or 0, error.strerror or str(error))
    advice = "Free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Make it writable"
    return OSError(
        error.errno,
        f"the checkpoint {path} could not be written: {reason}. What was there before is as it was. {advice}, or "
        "choose another folder with ModelCheckpoint(dirpath=...), and go on from the last checkpoint",
    )
