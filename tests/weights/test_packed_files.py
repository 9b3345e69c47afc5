"""Files that are compressed with gzip: read as what is in them, from a temporary copy that goes when it may."""

import collections
import gc
import gzip
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hostile_files import ran_out_of_memory, refuses_or_is_empty
from safetensors.torch import save_file
from small_network import equal, network, values
from torch import Tensor

from lit_transfer.weights import WeightsError, _unpacked, describe, load_weights, open_checkpoint


@pytest.fixture(autouse=True)
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for temporary files."""
    folder = tmp_path / "room"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def write(kind: str, path: Path, state: dict[str, Tensor], legacy_tar: Callable[..., None]) -> None:
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "tar":
        legacy_tar(collections.OrderedDict(state), path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")


@pytest.mark.parametrize("kind", ["zip", "legacy", "tar", "safetensors"])
def test_each_format_in_gzip(tmp_path: Path, room: Path, kind: str, legacy_tar: Callable[..., None]) -> None:
    state = {n: t for n, t in values(network()).items() if t.is_floating_point()}  # the tar is of floats alone
    write(kind, tmp_path / "f", state, legacy_tar)
    (tmp_path / "f.pth.gz").write_bytes(gzip.compress((tmp_path / "f").read_bytes()))
    model = network(5)
    report = load_weights(model, tmp_path / "f.pth.gz", head=["fc"])
    assert report.format.endswith(" in gzip")
    body = {name: tensor for name, tensor in state.items() if "fc" not in name}
    assert equal({name: values(model)[name] for name in body}, body)
    gc.collect()
    assert not list(room.iterdir())


def test_the_copy_lives_as_long_as_a_tensor_of_it(tmp_path: Path, room: Path) -> None:
    torch.save({"weight": torch.arange(4.0)}, tmp_path / "f")
    (tmp_path / "f.gz").write_bytes(gzip.compress((tmp_path / "f").read_bytes()))
    checkpoint = open_checkpoint(tmp_path / "f.gz")
    assert describe(checkpoint)["format"] == "torch zip in gzip"
    tensor = checkpoint.state_dict()["weight"]
    del checkpoint
    gc.collect()
    assert len(list(room.iterdir())) == 1
    assert tensor.read().tolist() == [0, 1, 2, 3]
    del tensor
    gc.collect()
    assert not list(room.iterdir())


def test_a_forked_process_leaves_the_copy(tmp_path: Path, room: Path) -> None:
    copy = room / "copy"
    copy.touch()
    _unpacked._remove(copy, os.getpid() + 1)
    assert copy.exists()
    _unpacked._remove(copy, os.getpid())
    assert not copy.exists()


@pytest.mark.usefixtures("limits")
def test_a_bomb_is_refused_and_its_copy_removed(tmp_path: Path, room: Path) -> None:
    with gzip.open(tmp_path / "bomb.pth.gz", "wb", compresslevel=1) as stream:
        for _ in range(65):
            stream.write(bytes(2**20))
    with pytest.raises(WeightsError, match=r"more than 67,108,864 when it is unpacked.*gunzip") as caught:
        open_checkpoint(tmp_path / "bomb.pth.gz")
    assert not ran_out_of_memory(caught.value)
    del caught
    gc.collect()
    assert not list(room.iterdir())


def test_zeros_are_no_bomb(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1000, 4000)}, tmp_path / "f")
    data = gzip.compress((tmp_path / "f").read_bytes())
    assert len(data) * 100 < 16_000_000
    (tmp_path / "f.gz").write_bytes(data)
    assert not open_checkpoint(tmp_path / "f.gz").read()["weight"].any()


@pytest.mark.usefixtures("limits")
def test_truncated_and_damaged_files(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2, 2), "bias": torch.ones(2)}, tmp_path / "f")
    data = gzip.compress((tmp_path / "f").read_bytes())
    for length in range(2, len(data), 5):
        (tmp_path / "f.gz").write_bytes(data[:length])
        refuses_or_is_empty(tmp_path / "f.gz")
    for damaged in (
        data[:-8] + b"\0" * 8,
        data + b"more",
        data[:20] + b"\xff" * 20 + data[40:],
        data[:2] + b"\x09" * 9,
    ):
        (tmp_path / "f.gz").write_bytes(damaged)
        with pytest.raises(WeightsError, match=r"f\.gz is compressed with gzip and truncated or damaged"):
            open_checkpoint(tmp_path / "f.gz")


def test_what_is_in_it_is_named_with_the_file(tmp_path: Path, room: Path) -> None:
    (tmp_path / "f.gz").write_bytes(gzip.compress(gzip.compress(b"x")))
    with pytest.raises(WeightsError, match="compressed with gzip twice"):
        open_checkpoint(tmp_path / "f.gz")
    (tmp_path / "f.gz").write_bytes(gzip.compress(b"hello"))
    with pytest.raises(WeightsError, match=r"f\.gz, unpacked, is no checkpoint that is known") as caught:
        open_checkpoint(tmp_path / "f.gz")
    assert str(room) not in str(caught.value)


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f.gz").write_bytes(gzip.compress(b"hello"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(WeightsError, match=r"nowhere.*set TMPDIR to a folder with room"):
        open_checkpoint(tmp_path / "f.gz")
