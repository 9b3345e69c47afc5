"""Damage to files, at random: on the outside, or inside what is then packed again with right checksums and lengths."""

import gzip
import io
import re
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Sequence
from random import Random

NUMBERS = (
    0,
    1,
    2,
    3,
    127,
    128,
    255,
    256,
    2**15,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
WIDTHS = ("<H", "<I", "<Q", ">H", ">I", ">Q")
PIECE = 64  # bytes at most that are cut, moved, doubled or taken from elsewhere

Damage = Callable[[bytearray, Random, Sequence[bytes]], None]


def damaged(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """Damage a file in one to four places.

    Args:
        data: The file.
        random: Decides.
        others: Files to take pieces from.
    """
    repack = next((repack for begin, repack in _PACKED if begin(data)), None)
    if repack is not None and random.random() < 0.7:
        return repack(data, random, others)
    return _bytes(data, random, others)


def _bytes(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    raw = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        random.choice(_DAMAGE)(raw, random, others)
    return bytes(raw)


def _piece(raw: Sequence[int], random: Random) -> slice:
    start = random.randrange(len(raw) + 1)
    return slice(start, start + random.choice((1, 2, 4, 8, random.randint(1, PIECE))))


def _flip(raw: bytearray, random: Random, others: Sequence[bytes]) -> None:
    if raw:
        raw[random.randrange(len(raw))] ^= 1 << random.randrange(8)


def _byte(raw: bytearray, random: Random, others: Sequence[bytes]) -> None:
    if raw:
        raw[random.randrange(len(raw))] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))


def _number(raw: bytearray, random: Random, others: Sequence[bytes]) -> None:
    width = random.choice(WIDTHS)
    size = struct.calcsize(width)
    number = random.choice((*NUMBERS, len(raw), len(raw) + 1, random.getrandbits(64)))
    at = random.randrange(max(1, len(raw) - size))
    raw[at : at + size] = struct.pack(width, number % (1 << 8 * size))


def _digits(raw: bytearray, random: Random, others: Sequence[bytes]) -> None:
    """Numbers in text: headers of safetensors, of arrays and of tar files, indices, old pickles."""
    found = list(re.finditer(rb"-?\d+", raw))
    if found:
        chosen = random.choice(found)
        raw[chosen.start() : chosen.end()] = str(random.choice((*NUMBERS, -1, -(2**63), 10**30))).encode()


def _cut(raw: bytearray, random: Random, others: Sequence[bytes]) -> None:
    del raw[_piece(raw, random)]


def _end(raw: bytearray, random: Random, others: Sequence[bytes]) -> None:
    del raw[random.randrange(len(raw) + 1) :]


def _repeat(raw: bytearray, random: Random, others: Sequence[bytes]) -> None:
    piece = _piece(raw, random)
    raw[piece] = bytes(raw[piece]) * random.choice((2, 3, 10, 1000))


def _move(raw: bytearray, random: Random, others: Sequence[bytes]) -> None:
    piece = _piece(raw, random)
    moved = bytes(raw[piece])
    del raw[piece]
    at = random.randrange(len(raw) + 1)
    raw[at:at] = moved


def _take(raw: bytearray, random: Random, others: Sequence[bytes]) -> None:
    """Put a piece of another file in, over what is there or between."""
    other = random.choice(others)
    at = random.randrange(len(raw) + 1)
    taken = other[_piece(other, random)]
    raw[at : at + random.choice((0, len(taken)))] = taken


_DAMAGE: list[Damage] = [_flip, _byte, _number, _digits, _cut, _end, _repeat, _move, _take]


def _gzip(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    return gzip.compress(_bytes(gzip.decompress(data), random, others), mtime=0)


def _zip(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """Damage a member, or its name; leave one out, or have one twice."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w") as new, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two members of one name, which is what is wanted
        members = {info.filename: old.read(info) for info in old.infolist()}
        chosen = random.choice(list(members))
        what = random.choice(("content", "content", "content", "name", "none", "other"))
        for name, content in members.items():
            if name != chosen:
                new.writestr(name, content)
            elif what == "content":
                new.writestr(name, _bytes(content, random, others))
            elif what == "name":
                other = _bytes(name.encode(), random, others).decode("latin1").replace("\0", "")[:1000]
                new.writestr(other or "x", content)
            elif what == "other":
                new.writestr(name, random.choice(list(members.values())))
    return stream.getvalue()


def _tar(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(data)) as old, tarfile.open(fileobj=stream, mode="w:") as new:
        members = old.getmembers()
        chosen = random.choice(members).name
        for member in members:
            file = old.extractfile(member)
            content = file.read() if file is not None else b""
            if member.name == chosen:
                content = _bytes(content, random, others)
            member.size = len(content)
            new.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def _safetensors(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """Damage the header, and put its new length in front of it."""
    length = int.from_bytes(data[:8], "little")
    header = _bytes(data[8 : 8 + length], random, others)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


_PACKED: list[tuple[Callable[[bytes], bool], Callable[[bytes, Random, Sequence[bytes]], bytes]]] = [
    (lambda data: data.startswith(b"\x1f\x8b"), _gzip),
    (lambda data: data.startswith(b"PK"), _zip),
    (lambda data: data[257:262] == b"ustar", _tar),
    (lambda data: data[8:10] == b'{"', _safetensors),
]
