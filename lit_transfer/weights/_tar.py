"""Members of a tar file, found without unpacking anything.

Layout: a header of 512 bytes (name at 0, size in octal at 124, kind at 156), the data, padding to 512; two zero blocks
end it. Source: POSIX.1-1988 ustar.
"""

from collections.abc import Iterator
from typing import IO

from lit_transfer.weights._errors import WeightsError
from lit_transfer.weights._lazy import SourceFile

_BLOCK = 512
_MAX_MEMBERS = 10_000
_FILES = b"0\0"


def tar_members(stream: IO[bytes], file: SourceFile) -> Iterator[tuple[str, int, int]]:
    """(name, first byte, size) of each regular file in the archive.

    Raises:
        WeightsError: A header is damaged, or a member reaches beyond the file.
    """
    position = 0
    for _ in range(_MAX_MEMBERS):
        stream.seek(position)
        header = stream.read(_BLOCK)
        if not header.strip(b"\0"):
            return
        size = _size(header, file)
        position += _BLOCK
        if position + size > file.size:
            raise WeightsError(f"{file.path} is truncated: a member of the tar archive ends at byte {position + size}")
        if header[156] in _FILES:
            yield header[:100].rstrip(b"\0").decode("latin1"), position, size
        position += -(-size // _BLOCK) * _BLOCK
    raise WeightsError(f"{file.path} is a tar archive of more than {_MAX_MEMBERS:,} members")


def _size(header: bytes, file: SourceFile) -> int:
    digits = header[124:136].strip(b"\0 ")
    if len(header) < _BLOCK or not digits.isdigit() or set(digits) & set(b"89"):
        raise WeightsError(f"{file.path} is a tar archive with a damaged header")
    return int(digits, 8)
