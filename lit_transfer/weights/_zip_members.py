"""Members of a zip archive: where their bytes begin, whether they lie apart, and their checksums.

Layout: a local header of 30 bytes before each member (length of its name at 26, of its extra field at 28), the central
directory at the end. The archive's CRC-32 of a member is 0 where the author did not compute it. Source: APPNOTE.TXT of
PKWARE.
"""

import struct
import zipfile
import zlib
from collections.abc import Sequence
from itertools import pairwise
from typing import IO

from lit_transfer.weights._errors import WeightsError
from lit_transfer.weights._lazy import SourceFile

_CHUNK = 2**18  # stays in the processor's cache between the read and the checksum


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
    handle.seek(header)
    fixed = handle.read(30)
    if len(fixed) < 30 or fixed[:4] != b"PK\x03\x04":
        raise WeightsError(f"{file.path}: the header of member {name!r} is damaged")
    name_length, extra_length = struct.unpack("<HH", fixed[26:30])
    return header + 30 + int(name_length) + int(extra_length)


def verify_member(file: SourceFile, info: zipfile.ZipInfo, handle: IO[bytes]) -> None:
    """Compare a stored member's bytes with the archive's CRC-32 of them."""
    handle.seek(first_byte(file, info.header_offset, info.filename, handle))
    left, found, buffer = info.file_size, 0, memoryview(bytearray(_CHUNK))
    while left and (count := handle.readinto(buffer[: min(left, _CHUNK)])):  # type: ignore[attr-defined]  # a RawIOBase
        found = zlib.crc32(buffer[:count], found)
        left -= count
    if left or found != info.CRC:
        raise WeightsError(
            f"{file.path}: the bytes of member {info.filename!r} do not have the checksum that the archive names: "
            "damaged since they were written; copy or download the file again "
            "(open_checkpoint(path, verify=False) reads it as it is)"
        )


def damaged_zip(file: SourceFile, error: Exception) -> WeightsError:
    """What an archive is told to be that zipfile cannot open."""
    return WeightsError(
        f"{file.path} is a zip file that is truncated or damaged ({error}); it has {file.size:,} bytes: "
        "compare with the size at its source and copy or download it again"
    )
