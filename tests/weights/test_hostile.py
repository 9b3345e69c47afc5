"""Files made to harm: only a WeightsError, no code run, the model untouched, bounded memory, no hang."""

import collections
import contextlib
import io
import itertools
import json
import pickle
import resource
import signal
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lit_transfer.weights import WeightsError, load_weights, open_checkpoint

SECONDS = 60  # for each test; the slowest takes four on an idle machine
EXTRA_BYTES = 2**30  # what opening a file may cost, whatever it holds
# A pickle of the full 2 million operations costs 600 MB and some seconds. A tenth of it is tried.
MAX_OPERATIONS = 200_000
EXTRA_BYTES_OF_BOMBS = MAX_OPERATIONS * 300 + 200 * 2**20  # and what the pickles themselves need


@pytest.fixture(autouse=True)
def limits() -> Iterator[None]:
    """A limit on the time and on the memory of each test in this file."""

    def too_late(*_: Any) -> None:
        pytest.fail(f"took longer than {SECONDS} s")  # no Exception, which the unpickler would turn into its own

    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(SECONDS)
    if Path("/proc/self/statm").exists():
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + EXTRA_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)


def ran_out_of_memory(error: BaseException | None) -> bool:
    """Whether the limit on memory is what stopped it: the reader itself has to refuse first."""
    while error is not None and not isinstance(error, MemoryError):
        error = error.__cause__ or error.__context__
    return error is not None


def u64(number: int) -> bytes:
    return struct.pack("<Q", number)


MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
CALL = b"cos\nmkdir\n"
# Each would call os.mkdir("evil"), through another opcode.
CALLS = {
    "REDUCE": CALL + b"(S'evil'\ntR.",
    "NEWOBJ": CALL + b"(S'evil'\nt\x81.",
    "NEWOBJ_EX": CALL + b"(S'evil'\nt}\x92.",
    "INST": b"(S'evil'\nios\nmkdir\n.",
    "OBJ": b"(" + CALL + b"S'evil'\no.",
    "STACK_GLOBAL": b"\x8c\x02os\x8c\x05mkdir\x93(S'evil'\ntR.",
    "BUILD": b"cbuiltins\neval\n)\x81(S'evil'\ntb.",
    "setstate": b"cos\nmkdir\n)\x81}S'__setstate__'\ncos\nmkdir\nsb.",
    "EXT1": b"\x82\x01.",
    "EXT2": b"\x83\x01\x00.",
    "EXT4": b"\x84\x01\x00\x00\x00.",
    "getattr": b"cbuiltins\ngetattr\n(cos\nS'mkdir'\ntR.",
    "import": b"cbuiltins\n__import__\n(S'os'\ntR.",
    "dotted": b"\x80\x04\x8c\x02os\x8c\x0bpath.isfile\x93.",
    "as a key": b"}(" + CALL + b"(S'evil'\ntRI1\nu.",
    "builder": b"ctorch._utils\n_rebuild_tensor_v2\n(" + CALL + b"I0\n))tR.",
    "builder's state": b"ctorch._utils\n_rebuild_tensor_v2\n}S'__globals__'\n}sb.",
    "NEXT_BUFFER": b"\x97.",
    "READONLY_BUFFER": b"\x98.",
}
PICKLES = {
    **CALLS,
    "memo bomb": b"Nr\xff\xff\xff\x1f.",
    "BYTEARRAY8": b"\x96" + u64(4 << 30) + b"x.",
    "BYTEARRAY8 huge": b"\x96" + u64(2**63) + b"x.",
    "BINBYTES8": b"\x8e" + u64(4 << 30) + b"x.",
    "BINBYTES": b"B" + struct.pack("<I", 2**31) + b"x.",
    "BINUNICODE8": b"\x8d" + u64(4 << 30) + b"x.",
    "FRAME": b"\x95" + u64(4 << 30) + b"N.",
    "LONG4": b"\x8b" + struct.pack("<i", 0x7FFFFFFF) + b"x.",
    "LONG4 negative": b"\x8b" + struct.pack("<i", -5) + b"x.",
    "BINSTRING negative": b"T" + struct.pack("<i", -5) + b"x.",
    "endless line": b"S'" + b"x" * 200_000,
    "long number": b"L" + b"9" * 60_000 + b"L\n.",
    "deep lists": b"]" * 100_000 + b"a" * 99_999 + b".",
    "deep tuples": b")" + b"\x85" * 200_000 + b".",
    "deep tuple as key": b"}(" + b")" + b"\x85" * 200_000 + b"Nu.",
    "deep tuple in a set": b"\x8f()" + b"\x85" * 200_000 + b"\x90.",
    "deep frozenset": b"()" + b"\x85" * 200_000 + b"\x91.",
    "deep modules": b"".join(b"cx\nM\n)\x81}S'_modules'\n}S'a'\n" for _ in range(3000)) + b"N" + b"sssb" * 3000 + b".",
    "list in itself": b"]q\x00h\x00a.",
    "dict in itself": b"}q\x00S'a'\nh\x00s.",
    "module in itself": b"cx\nM\n)\x81q\x00}S'_modules'\n}S'a'\nh\x00sS'_parameters'\n}ssb.",
    "dict as key": b"}(}Nu.",
    "list as key": b"}(]Nu.",
    "append to a number": b"I1\nNa.",
    "set item of a tuple": b")NNs.",
    "odd items": b"}(Nu.",
    "stack underflow": b"R.",
    "no stop": b"N",
    "unknown opcode": b"\xff.",
    "pop of nothing": b"0000.",
    "mark missing": b"t.",
    "get of nothing": b"h\x07.",
    "persistent nonsense": b"I3\nQ.",
    "storage without key": b"(S'storage'\nctorch\nFloatStorage\nNS'cpu'\nI4\ntQ.",
    "storage negative": b"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI-4\ntQ.",
    "storage huge": b"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nL4611686018427387904L\ntQ.",
    "storage unknown": b"(S'storage'\nctorch\nNewStorage\nS'0'\nS'cpu'\nI4\ntQ.",
    "storage of a path": b"(S'storage'\nctorch\nFloatStorage\nS'../../0'\nS'cpu'\nI4\ntQ.",
    "million keys of one hash": b"".join(
        [b"}("] + [b"\x8a\x0a" + (i * (2**61 - 1)).to_bytes(10, "little") + b"N" for i in range(1, 50_000)] + [b"u."]
    ),
}
BOMBS = {
    **{name: PICKLES[name] for name in ("memo bomb", "BYTEARRAY8", "BINBYTES8", "FRAME", "LONG4", "deep lists")},
    "operations": b"N0" * 300_000 + b"N.",
    "sets": b"\x8f" * 600_000 + b".",
    "modules": b"cx\nM\n" + b"2)\x81" * 200_000 + b".",
}
TENSORS = {
    "beyond its storage": "I0\n(I9\nt(I1\nt",
    "negative offset": "I-1\n(I2\nt(I1\nt",
    "negative stride": "I3\n(I2\nt(I-1\nt",
    "negative size": "I0\n(I-2\nt(I1\nt",
    "far stride": "I0\n(I2\nt(L9223372036854775807L\nt",
    "huge shape": "I0\n(L4611686018427387904L\nL4611686018427387904L\nt(I0\nI0\nt",
    "text for a size": "I0\n(S'a'\nt(I1\nt",
    "shape without strides": "I0\n(I2\nt)",
    "no tuple": "I0\nI2\nI1\n",
    "many dimensions": "I0\n(" + "I1\n" * 100 + "t(" + "I1\n" * 100 + "t",
}


def zipped(path: Path, data: bytes, **storages: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        for key, raw in {"0": b"\0" * 16, **storages}.items():
            archive.writestr(f"archive/data/{key}", raw)
    return path


def legacy(path: Path, data: bytes) -> Path:
    path.write_bytes(MAGIC + data + pickle.dumps(["0"], 2) + u64(4) + b"\0" * 16)
    return path


def refuses_or_is_empty(path: Path) -> None:
    """The file is refused; or it opens, holds nothing that fits, and the model stays as it was."""
    model = nn.Linear(2, 2)
    before = model.weight.clone()
    with pytest.raises(WeightsError) as caught:
        load_weights(model, path)
    assert not ran_out_of_memory(caught.value)
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("write", [zipped, legacy])
@pytest.mark.parametrize("name", PICKLES)
def test_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, write: Callable[..., Path]) -> None:
    monkeypatch.chdir(tmp_path)
    refuses_or_is_empty(write(tmp_path / "f", PICKLES[name]))
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("write", [zipped, legacy])
@pytest.mark.parametrize("name", TENSORS)
def test_tensors(tmp_path: Path, name: str, write: Callable[..., Path]) -> None:
    storage = "(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI4\ntQ"
    data = f"}}S'weight'\nctorch._utils\n_rebuild_tensor_v2\n({storage}{TENSORS[name]}I00\n}}tRs.".encode()
    path = write(tmp_path / "f", data)
    with pytest.raises(WeightsError) as caught:
        open_checkpoint(path)
    assert not ran_out_of_memory(caught.value)


def test_a_good_file_by_hand_is_read(tmp_path: Path) -> None:  # else the two tests above would prove nothing
    storage = "(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI4\ntQ"
    data = f"}}S'weight'\nctorch._utils\n_rebuild_tensor_v2\n({storage}I0\n(I2\nI2\nt(I2\nI1\ntI00\n}}tRs.".encode()
    for write in (zipped, legacy):
        assert open_checkpoint(write(tmp_path / "f", data)).read()["weight"].shape == (2, 2)


def test_memory_and_time_are_bounded(tmp_path: Path) -> None:
    """Each bomb in a process of its own, with a limit on its memory and its time."""
    quick = [name for name in BOMBS if name not in ("operations", "sets", "modules")]
    paths = [write(tmp_path / f"{name}{write.__name__}", BOMBS[name]) for name in quick for write in (zipped, legacy)]
    paths += [zipped(tmp_path / name, BOMBS[name]) for name in ("operations", "sets", "modules")]
    code = f"""
import resource, sys, torch
from lit_transfer.weights import WeightsError, _inert, open_checkpoint
_inert.MAX_OPERATIONS = {MAX_OPERATIONS}
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {EXTRA_BYTES_OF_BOMBS},) * 2)
for path in sys.argv[1:]:
    try:
        open_checkpoint(path).state_dicts
    except WeightsError as error:
        while error is not None:
            if isinstance(error, MemoryError):
                sys.exit(f"{{path}} runs out of memory")
            error = error.__cause__ or error.__context__
"""
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc to limit memory")
    subprocess.run([sys.executable, "-c", code, *map(str, paths)], check=True, timeout=SECONDS)


def test_zip_files(tmp_path: Path) -> None:
    good = io.BytesIO()
    torch.save({"weight": torch.ones(64, 64), "bias": torch.ones(64)}, good)
    data = good.getvalue()
    with zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 300 * 2**20)
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(tmp_path / "packed", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    header = data.index(b"PK\x01\x02")
    (tmp_path / "local").write_bytes(data.replace(b"PK\x03\x04", b"PK\x03\x05"))
    (tmp_path / "offset").write_bytes(data[: header + 42] + b"\xff\xff\xff\x7f" + data[header + 46 :])
    (tmp_path / "directory").write_bytes(data[:-22] + data[-22:].replace(data[-6:-2], b"\xff\xff\xff\x7f"))
    zipped(tmp_path / "short", b"N.", **{"0": b""})
    for name in ("bomb", "packed", "local", "offset", "directory", "short"):
        refuses_or_is_empty(tmp_path / name)


def test_members_that_overlap_or_share_a_name_are_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2, 2), "bias": torch.ones(2, 2)}, tmp_path / "good")
    data = (tmp_path / "good").read_bytes()
    with zipfile.ZipFile(tmp_path / "good") as archive:
        one = archive.getinfo("good/data/0")
    entry = data.index(b"good/data/1", archive.start_dir) - 46

    def moved(offset: int) -> bytes:
        """The directory's entry of the second storage points elsewhere."""
        return data[: entry + 42] + struct.pack("<I", offset) + data[entry + 46 :]

    for offset in (one.header_offset, one.header_offset + 20):
        (tmp_path / "f").write_bytes(moved(offset))
        with pytest.raises(WeightsError, match=r"members 'good/data/0' and 'good/data/1' overlap"):
            open_checkpoint(tmp_path / "f")
    (tmp_path / "f").write_bytes(data.replace(b"good/data/1", b"good/data/0"))
    with pytest.raises(WeightsError, match="two members of one name"):
        open_checkpoint(tmp_path / "f")


@pytest.mark.parametrize("legacy_format", [False, True])
def test_truncation_everywhere(tmp_path: Path, legacy_format: bool) -> None:
    buffer = io.BytesIO()
    torch.save(nn.Linear(2, 2).state_dict(), buffer, _use_new_zipfile_serialization=not legacy_format)
    data = buffer.getvalue()
    for length in range(0, len(data), 1 if legacy_format else 7):
        (tmp_path / "f").write_bytes(data[:length])
        refuses_or_is_empty(tmp_path / "f")


def test_truncation_of_the_other_formats(tmp_path: Path, legacy_tar: Callable[..., None]) -> None:
    from safetensors.torch import save_file

    state = collections.OrderedDict(nn.Linear(2, 2).state_dict())
    save_file(state, tmp_path / "st")
    data = (tmp_path / "st").read_bytes()
    legacy_tar(state, tmp_path / "tar", tarfile.USTAR_FORMAT)
    tar = (tmp_path / "tar").read_bytes().rstrip(b"\0")
    for length in itertools.chain(range(len(data)), range(len(data) + 1, len(data) + len(tar), 13)):
        (tmp_path / "f").write_bytes(data[:length] if length < len(data) else tar[: length - len(data)])
        refuses_or_is_empty(tmp_path / "f")


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_flipped_bytes_never_raise_anything_else(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    buffer = io.BytesIO()
    torch.save({"epoch": 3, "model": nn.Linear(2, 2)}, buffer, _use_new_zipfile_serialization=data.draw(st.booleans()))
    raw = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("flip") / "f"
    path.write_bytes(raw)
    with contextlib.suppress(WeightsError):
        open_checkpoint(path).read()


HEADERS: dict[str, bytes] = {
    "huge length": u64(2**63) + b"{}",
    "length beyond": u64(100) + b"{}",
    "no object": u64(4) + b"{1}2",
    "deep": u64(100_000) + b'{"a":' * 20_000,
    "twice": u64(5) + b"{}   ",
}
ENTRIES: dict[str, object] = {
    "negative": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
    "beyond": {"dtype": "F32", "shape": [100], "data_offsets": [0, 400]},
    "backwards": {"dtype": "F32", "shape": [1], "data_offsets": [8, 4]},
    "unequal": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
    "dtype": {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]},
    "text": {"dtype": "F32", "shape": "11", "data_offsets": [0, 4]},
    "float": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]},
    "bool": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
    "huge": {"dtype": "F32", "shape": [2**62, 0], "data_offsets": [0, 0]},
    "list": [1],
    "nothing": None,
}


@pytest.mark.parametrize("name", [*HEADERS, *ENTRIES])
def test_safetensors(tmp_path: Path, name: str) -> None:
    data = HEADERS.get(name, b"")
    if not data:
        header = json.dumps({"weight": ENTRIES[name]}).encode()
        data = u64(len(header)) + header + b"\0" * 16
    (tmp_path / "f").write_bytes(data)
    refuses_or_is_empty(tmp_path / "f")


def test_tar_files(tmp_path: Path, legacy_tar: Callable[..., None]) -> None:
    legacy_tar(collections.OrderedDict(a=torch.ones(2)), tmp_path / "good", tarfile.USTAR_FORMAT)
    good = (tmp_path / "good").read_bytes()
    for i, hostile in enumerate(
        [
            good.replace(b"storages", b"../../xx"),
            good[:124] + b"77777777777\0" + good[136:],
            good[:124] + b"notoctal   \0" + good[136:],
            good.replace(struct.pack("<q", 2), struct.pack("<q", 2**60)),
            good.replace(struct.pack("<q", 2), struct.pack("<q", -2)),
            good.replace(struct.pack("<ii", 1, 0), struct.pack("<ii", 2**30, 0)),
            good.replace(b"FloatStorage", b"EvilsStorage"),
        ]
    ):
        assert hostile != good
        (tmp_path / f"{i}").write_bytes(hostile)
        refuses_or_is_empty(tmp_path / f"{i}")


def test_modules_that_share_children_do_not_explode(tmp_path: Path) -> None:
    level = b"cx\nM\n)\x81}S'_modules'\n}sbq\x00"
    for _ in range(55):
        level += b"0cx\nM\n)\x81}S'_modules'\n}(S'a'\nh\x00S'b'\nh\x00ussbq\x00"
    refuses_or_is_empty(zipped(tmp_path / "f", level + b"."))
