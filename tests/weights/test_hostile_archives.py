"""Archives made to harm, truncated or damaged: only a WeightsError, the model untouched, bounded memory, no hang."""

import collections
import contextlib
import io
import itertools
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hostile_files import refuses_or_is_empty, u64, zipped
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lit_transfer.weights import WeightsError, load_weights, open_checkpoint

pytestmark = pytest.mark.usefixtures("limits")


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


def test_a_member_before_the_beginning_of_the_file(tmp_path: Path) -> None:
    """zipfile takes bytes that are missing for a shift of all places, so that the first one gets negative."""
    torch.save(nn.Linear(2, 2, bias=False).state_dict(), tmp_path / "good")
    with zipfile.ZipFile(tmp_path / "good") as old, zipfile.ZipFile(tmp_path / "f", "w") as new:
        for name in sorted(old.namelist(), key=lambda name: name != "good/data/0"):
            new.writestr(name, old.read(name))
    data = (tmp_path / "f").read_bytes()
    (tmp_path / "f").write_bytes(data[:4] + data[24:])
    model = nn.Linear(2, 2, bias=False)
    before = model.weight.detach().clone()
    with pytest.raises(WeightsError):
        load_weights(model, tmp_path / "f")
    assert torch.equal(model.weight, before)


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


def test_tensors_of_safetensors_that_overlap_are_refused(tmp_path: Path) -> None:
    entries = {name: {"dtype": "F32", "shape": [2], "data_offsets": [i, i + 8]} for i, name in ((0, "a"), (4, "b"))}
    header = json.dumps(entries).encode()
    (tmp_path / "f").write_bytes(u64(len(header)) + header + b"\0" * 12)
    with pytest.raises(WeightsError, match="'a' and 'b' overlap"):
        open_checkpoint(tmp_path / "f")


def test_a_legacy_storage_that_is_listed_twice_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2, 2)}, tmp_path / "f", _use_new_zipfile_serialization=False)
    data = (tmp_path / "f").read_bytes()
    keys = data.rindex(b"\x80\x02]")  # the list of the storages' keys, and then their bytes
    (key,) = pickle.loads(data[keys:])
    storage = data[len(data) - 24 :]
    (tmp_path / "f").write_bytes(data[:keys] + pickle.dumps([key, key], 2) + storage + storage)
    with pytest.raises(WeightsError, match="listed twice"):
        open_checkpoint(tmp_path / "f")


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
