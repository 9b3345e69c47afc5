"""save_weights(..., shards=...): several files and an index, in huggingface's layout, whole or not at all."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_network import equal, network, values
from torch import nn

from lit_transfer.weights import WeightsError, _save, load_weights, open_checkpoint, save_weights
from lit_transfer.weights._shards import size_in_bytes


def test_shards_are_read_back(tmp_path: Path) -> None:
    source = network(width=30)
    path = save_weights(source, tmp_path / "model.safetensors", shards="20KB", metadata={"from": "here"})
    assert path == tmp_path / "model.safetensors.index.json"
    files = sorted(file.name for file in tmp_path.glob("*.safetensors"))
    count = len(files)
    assert count > 2
    assert files == [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    assert sorted(tmp_path.iterdir()) == sorted([path, *(tmp_path / name for name in files)])
    index = json.loads(path.read_text())
    assert set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in values(source).values())
    read = {name: tensor for file in files for name, tensor in load_file(tmp_path / file).items()}
    assert equal({name: read[name] for name in values(source)}, values(source))
    for given in (path, tmp_path):
        model = network(width=30)
        report = load_weights(model, given)
        assert equal(values(model), values(source))
        assert report.format == f"safetensors in {count} shards"
    assert open_checkpoint(path).metadata["from"] == "here"


def test_no_file_is_larger_but_for_one_tensor(tmp_path: Path) -> None:
    state = {"a": torch.ones(100), "b": torch.ones(100), "big": torch.ones(1000), "c": torch.ones(100)}
    path = save_weights(state, tmp_path / "m.safetensors", shards=900)
    assert list(json.loads(path.read_text())["weight_map"].values()) == [
        f"m-0000{i}-of-00003.safetensors" for i in (1, 1, 2, 3)
    ]
    half = save_weights(state, tmp_path / "half.safetensors", shards=900, dtype=torch.float16)
    assert set(json.loads(half.read_text())["weight_map"].values()) == {
        f"half-0000{i}-of-00003.safetensors" for i in (1, 2, 3)
    }


def test_what_fits_is_one_file(tmp_path: Path) -> None:
    path = save_weights(nn.Linear(2, 2), tmp_path / "m.safetensors", shards="1GB")
    assert list(tmp_path.iterdir()) == [path] == [tmp_path / "m.safetensors"]


def test_tied_tensors_stay_together(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        first = nn.Linear(50, 50)
        model = nn.ModuleDict({"a": first, "b": nn.Linear(50, 50), "c": nn.Linear(50, 50)})
        model["c"].weight = first.weight
        return model

    source, model = tied(), tied()
    path = save_weights(source, tmp_path / "m.safetensors", shards=11_000)
    weight_map = json.loads(path.read_text())["weight_map"]
    assert weight_map["a.weight"] == weight_map["c.weight"] != weight_map["b.weight"]
    assert sum(file.stat().st_size for file in tmp_path.glob("*.safetensors")) < 2.5 * 10_000
    load_weights(model, path)
    assert equal(values(model), values(source))


@pytest.mark.parametrize(
    ("size", "count"),
    [(7, 7), ("7B", 7), ("2GB", 2 * 10**9), ("1.5 MiB", 3 * 2**19), ("3kb", 3000), ("1TB", 10**12)],
)
def test_sizes(size: int | str, count: int) -> None:
    assert size_in_bytes(size) == count


@pytest.mark.parametrize("size", [0, -1, "", "GB", "2", "two GB", "0B", True, 1.5, None])
def test_what_is_no_size(size: object) -> None:
    with pytest.raises(ValueError, match=r"such as '2GB'"):
        size_in_bytes(size)  # type: ignore[arg-type]  # wrong on purpose


def test_only_safetensors_are_written_in_shards(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"shards are written as \.safetensors, got 'm\.pth'"):
        save_weights(nn.Linear(2, 2), tmp_path / "m.pth", shards=9)


def test_a_disk_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = network(width=30)
    path = save_weights(source, tmp_path / "m.safetensors", shards="20KB")
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    calls = []

    def fails(path: Path) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise OSError("no space left on device")

    monkeypatch.setattr(_save, "_flush", fails)
    with pytest.raises(OSError, match="no space left"):
        save_weights(network(width=30, classes=5), tmp_path / "m.safetensors", shards="20KB")
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert open_checkpoint(path).read().keys() == values(source).keys()


def test_a_shard_that_is_cut_off_is_one_error(tmp_path: Path) -> None:
    path = save_weights(network(width=30), tmp_path / "m.safetensors", shards="20KB")
    last = max(tmp_path.glob("*.safetensors"))
    last.write_bytes(last.read_bytes()[:-9])
    model = network(width=30)
    with pytest.raises(WeightsError, match="truncated or damaged"):
        load_weights(model, path)
