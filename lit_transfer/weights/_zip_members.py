"""Members of a zip archive: where their bytes begin, whether they lie apart, and their checksums.

Layout: a local header of 30 bytes before each member (length of its name at 26, of its extra field at 28), the central
directory at the end. The archive's CRC-32 of a member is 0 where the author did not compute it. Source: APPNOTE.TXT of
PKWARE.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Sequence
from itertools import pairwise
from typing import IO

from lit_transfer.weights._errors import WeightsError
from lit_transfer.weights._lazy import SourceFile, wrong_checksum

_CHUNK = 2**18  # stays in the processor's cache between the read and the checksum

# What zipfile raises on archives that are damaged, packed in a strange way or encrypted.
ZIP_ERRORS = (
    zipfile.BadZipFile,
    OSError,
    ValueError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    EOFError,
    zlib.error,
)


def require_apart(file: SourceFile, infos: Sequence[zipfile.ZipInfo]) -> None:
    """Raise a WeightsError if two members have one name, or share bytes."""
    if len({info.filename for info in infos}) != len(infos):
        raise WeightsError(f"{file.path} is a zip file with two members of one name: no checkpoint is like that")
    for one, other in pairwise(sorted(infos, key=lambda info: info.header_offset)):
        if one.header_offset + 30 + len(one.orig_filename) + one.compress_size > other.header_offset:
            raise WeightsError(
                f"{file.path} is a zip file whose members {one.filename!r} and {other.filename!r} overlap: no "
                "checkpoint is like that"
            )


def first_byte(file: SourceFile, header: int, name: str, handle: IO[bytes]) -> int:
    """Where a member's data begins: only its local header knows how much padding there is."""
    fixed = b""
    if 0 <= header < file.size:  # zipfile moves the places that a directory tells, also to before the beginning
        handle.seek(header)
        fixed = handle.read(30)
    if len(fixed) < 30 or fixed[:4] != b"PK\x03\x04":
        raise WeightsError(f"{file.path}: the header of member {name!r} is damaged")
    name_length, extra_length = struct.unpack("<HH", fixed[26:30])
    return header + 30 + int(name_length) + int(extra_length)


def verify_member(file: SourceFile, info: zipfile.ZipInfo, handle: IO[bytes], *, start: int = 0) -> None:
    """Compare a stored member's bytes with the archive's CRC-32 of them; the archive begins at byte `start`."""
    handle.seek(first_byte(file, start + info.header_offset, info.filename, handle))
    left, found, buffer = info.file_size, 0, memoryview(bytearray(_CHUNK))
    while left and (count := handle.readinto(buffer[: min(left, _CHUNK)])):  # type: ignore[attr-defined]  # a RawIOBase
        found = zlib.crc32(buffer[:count], found)
        left -= count
    if left or found != info.CRC:
        raise wrong_checksum(file, info.filename)


class Window(io.RawIOBase):
    """A part of a file with the face of a file: an archive that lies among others."""

    def __init__(self, handle: IO[bytes], start: int, length: int) -> None:
        self._handle, self._start, self._length, self._at = handle, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise OSError("a place before the beginning")
        self._at = base + offset
        return self._at

    def read(self, count: int = -1) -> bytes:
        left = max(0, self._length - self._at)
        self._handle.seek(self._start + self._at)
        data = self._handle.read(left if count is None or count < 0 else min(count, left))
        self._at += len(data)
        return data


def damaged_zip(file: SourceFile, error: Exception) -> WeightsError:
    """What an archive is told to be that zipfile cannot open."""
    return WeightsError(
        f"{file.path} is a zip file that is truncated or damaged ({error}); it has {file.size:,} bytes: "
        "compare with the size at its source and copy or download it again"
    )
