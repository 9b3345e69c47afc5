"""Members of a tar file, found without unpacking anything.

Layout: a header of 512 bytes (name at 0, size at 124 in octal, or in base 256 where the first bit is set, checksum at
148, kind at 156), the data, padding to 512; two zero blocks end it. A member of kind `x` (pax) or `L` (GNU) says of the
next one what its header has no room for. Source: POSIX.1-2001 pax and ustar, the GNU tar manual; Python's tarfile,
with which torch wrote such files.
"""

import re
from collections.abc import Iterator
from typing import IO

from lit_transfer.weights._errors import WeightsError
from lit_transfer.weights._lazy import SourceFile

_BLOCK = 512
_MAX_MEMBERS = 10_000
_MAX_EXTRA = 65_536
_FILES = b"0\x007"


def tar_members(stream: IO[bytes], file: SourceFile) -> Iterator[tuple[str, int, int]]:
    """(name, first byte, size) of each regular file in the archive.

    Raises:
        WeightsError: A header is damaged, or a member reaches beyond the file.
    """
    position = 0
    extra: dict[str, str] = {}
    for _ in range(_MAX_MEMBERS):
        stream.seek(position)
        header = stream.read(_BLOCK)
        if not header.strip(b"\0"):
            return
        kind = header[156:157]
        size = _size(header, file, extra if kind in _FILES else {})
        position += _BLOCK
        if position + size > file.size:
            raise WeightsError(f"{file.path} is truncated: a member of the tar archive ends at byte {position + size}")
        if kind in (b"x", b"L"):
            extra.update(_extra(stream.read(min(size, _MAX_EXTRA)), kind))
        elif kind in _FILES:
            name = extra.get("path") or header[:100].partition(b"\0")[0].decode("latin1")
            yield name.removeprefix("./"), position, size
            extra = {}
        position += -(-size // _BLOCK) * _BLOCK
    raise WeightsError(f"{file.path} is a tar archive of more than {_MAX_MEMBERS:,} members")


def _size(header: bytes, file: SourceFile, extra: dict[str, str]) -> int:
    field = header[124:136]
    digits = field.strip(b"\0 ")
    if len(header) == _BLOCK and _is_sound(header):
        if "size" in extra:
            return int(extra["size"])
        if field[0] == 0x80:
            return int.from_bytes(field[1:], "big")
        if digits.isdigit() and not set(digits) & set(b"89"):
            return int(digits, 8)
    raise WeightsError(f"{file.path} is a tar archive with a damaged header")


def _is_sound(header: bytes) -> bool:
    """Whether the header's checksum is the sum of its bytes, with blanks in the place of the checksum."""
    said = header[148:156].strip(b"\0 ")
    return said.isdigit() and not set(said) & set(b"89") and int(said, 8) == sum(header[:148] + header[156:]) + 8 * 32


def _extra(data: bytes, kind: bytes) -> dict[str, str]:
    """The long name or the large size of the next member."""
    if kind == b"L":
        return {"path": data.partition(b"\0")[0].decode("latin1")}
    pairs = re.findall(rb"\d{1,9} (path|size)=([^\n]{1,4096})\n", data)
    return {
        name.decode(): value.decode("latin1")
        for name, value in pairs
        if name == b"path" or re.fullmatch(rb"\d{1,18}", value)
    }
