"""Pickles made to harm: only a WeightsError, no code run, the model untouched, bounded memory, no hang."""

import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile_files import legacy, ran_out_of_memory, refuses_or_is_empty, u64, zipped

from lit_transfer.weights import WeightsError, open_checkpoint

pytestmark = pytest.mark.usefixtures("limits")
# A pickle of the full 2 million operations costs 600 MB and some seconds. A tenth of it is tried.
MAX_OPERATIONS = 200_000
EXTRA_BYTES_OF_BOMBS = MAX_OPERATIONS * 300 + 200 * 2**20  # and what the pickles themselves need
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
    subprocess.run([sys.executable, "-c", code, *map(str, paths)], check=True, timeout=60)


def test_modules_that_share_children_do_not_explode(tmp_path: Path) -> None:
    level = b"cx\nM\n)\x81}S'_modules'\n}sbq\x00"
    for _ in range(55):
        level += b"0cx\nM\n)\x81}S'_modules'\n}(S'a'\nh\x00S'b'\nh\x00ussbq\x00"
    refuses_or_is_empty(zipped(tmp_path / "f", level + b"."))
