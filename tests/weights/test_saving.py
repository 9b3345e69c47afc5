"""save_weights, describe and diff_checkpoints."""

import json
import os
import resource
import signal
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file, load_model
from torch import nn

from lit_transfer.weights import (
    WeightsError,
    describe,
    diff_checkpoints,
    load_weights,
    open_checkpoint,
    save_weights,
)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.b.weight = self.a.weight


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_tied_tensors_are_stored_once_and_come_back(tmp_path: Path, name: str) -> None:
    source = Tied()
    path = save_weights(source, tmp_path / name, dtype=torch.float16)
    assert path.stat().st_size < 2000
    read = open_checkpoint(path).read()
    assert read.keys() == {"a.weight", "b.weight"}
    assert read["b.weight"].dtype == torch.float16
    model = Tied()
    load_weights(model, path)
    assert model.b.weight is model.a.weight
    if name == "w.pth":
        model.load_state_dict(torch.load(path))
    else:
        load_model(model, path)


def test_others_read_what_is_written(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    save_weights(model, tmp_path / "w.pth", prefix="module")
    nn.DataParallel(model).load_state_dict(torch.load(tmp_path / "w.pth"))
    checkpoint = open_checkpoint(tmp_path / "w.pth")
    save_weights(checkpoint.state_dict(), tmp_path / "w.safetensors", strip="module")
    model.load_state_dict(load_file(tmp_path / "w.safetensors"))
    save_weights(nn.DataParallel(nn.DataParallel(model)), tmp_path / "w.ckpt", strip="module.module")
    model.load_state_dict(torch.load(tmp_path / "w.ckpt"))


def test_versions_of_modules_are_carried(tmp_path: Path) -> None:
    model = torchvision.models.mnasnet0_5(num_classes=3)
    shapes = [parameter.shape for parameter in model.parameters()]
    torch.save(nn.DataParallel(model).state_dict(), tmp_path / "dp.pth")
    save_weights(open_checkpoint(tmp_path / "dp.pth").state_dict(), tmp_path / "w.pth", strip="module")
    # Without the version torchvision takes it for an old file, and rebuilds the first layers of the model.
    fresh = torchvision.models.mnasnet0_5(num_classes=3)
    fresh.load_state_dict(torch.load(tmp_path / "w.pth"))
    assert [parameter.shape for parameter in fresh.parameters()] == shapes
    load_weights(fresh, tmp_path / "dp.pth")
    assert torch.equal(fresh.layers[0].weight, model.layers[0].weight)


def test_a_view_is_stored_without_its_storage(tmp_path: Path) -> None:
    save_weights({"w": torch.zeros(1_000_000)[:10], "t": torch.ones(2, 3).t()}, tmp_path / "w.pth")
    assert (tmp_path / "w.pth").stat().st_size < 5000
    assert open_checkpoint(tmp_path / "w.pth").read()["t"].shape == (3, 2)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_metadata(tmp_path: Path, name: str) -> None:
    about = {"class_names": json.dumps(["a", "b"]), "provenance": "resnet18 of somebody"}
    save_weights(nn.Linear(2, 2), tmp_path / name, metadata=about)
    assert open_checkpoint(tmp_path / name).metadata.items() >= about.items()
    if name == "w.pth":
        nn.Linear(2, 2).load_state_dict(torch.load(tmp_path / name))


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_weights({"w": torch.ones(1)}, tmp_path / "w.pth")

    def full(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        save_weights({"w": torch.zeros(1)}, path)
    assert open_checkpoint(path).read()["w"].item() == 1
    assert [file.name for file in tmp_path.iterdir()] == ["w.pth"]


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, name: str) -> None:
    path = save_weights({"w": torch.ones(1)}, tmp_path / name)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        with pytest.raises(OSError, match="cannot be written to"):
            save_weights({"w": torch.zeros(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert open_checkpoint(path).read()["w"].item() == 1
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_a_file_is_written_over_the_one_that_it_is_read_from(tmp_path: Path, name: str) -> None:
    source = nn.DataParallel(nn.Linear(300, 300))
    path = save_weights(source, tmp_path / name)
    save_weights(open_checkpoint(path).state_dict(), path, strip="module")
    assert torch.equal(open_checkpoint(path).read()["weight"], source.module.weight)


def test_what_cannot_be_saved_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"does not begin with `module\.`"):
        save_weights(nn.Linear(2, 2), tmp_path / "w.pth", strip="module")
    with pytest.raises(ValueError, match=r"\.safetensors or \.pth"):
        save_weights(nn.Linear(2, 2), tmp_path / "w.h5")
    with pytest.raises(WeightsError, match="meta device"):
        save_weights(nn.Linear(2, 2, device="meta"), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="no tensor"):
        save_weights({}, tmp_path / "w.pth")
    assert list(tmp_path.iterdir()) == []


def test_describe(tmp_path: Path) -> None:
    model = torchvision.models.resnet18(num_classes=2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.zeros(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    content = {
        "epoch": 3,
        "state_dict": nn.DataParallel(model).state_dict(),
        "optimizer": optimizer.state_dict(),
        "kind": Path,
    }
    torch.save(content, tmp_path / "f.pth")
    told = describe(open_checkpoint(tmp_path / "f.pth"))
    json.dumps(told)
    assert told["epoch"] == 3
    (found,) = told["state_dicts"]
    assert found["prefix"] == "module"
    assert found["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert found["looks_like"] == "a ResNet of basic blocks"
    assert told["optimizer_groups"][0]["lr"] == 0.1
    assert told["optimizer_groups"][0]["params"] == 62
    assert told["contents"]["state_dict"] == "122 tensors, module.conv1.weight 64x3x7x7 ... module.fc.bias 2"
    assert told["would_import"] == ["pathlib.Path"]


def test_diff(tmp_path: Path) -> None:
    one = {
        "a.weight": torch.ones(2, 2),
        "a.bias": torch.ones(2),
        "b": torch.ones(3),
        "c": torch.ones(1),
        "n": torch.ones(1),
    }
    other = {
        "module.a.weight": torch.ones(2, 2),
        "module.a.bias": torch.tensor([1.0, 1.5]),
        "module.b": torch.ones(4),
        "module.d": torch.ones(1),
        "module.n": torch.tensor([torch.nan]),
    }
    torch.save({"state_dict": other}, tmp_path / "f.pth")
    told = diff_checkpoints(open_checkpoint(one), open_checkpoint(tmp_path / "f.pth"))
    json.dumps(told)
    assert told["prefixes"] == ["", "module"]
    assert told["equal"] == ["a.weight"]
    assert told["different"]["a.bias"] == 0.5
    assert "n" in told["different"]
    assert told["shapes"] == {"b": [[3], [4]]}
    assert (told["only_in_first"], told["only_in_second"]) == (["c"], ["d"])
    assert diff_checkpoints(open_checkpoint(one), open_checkpoint(other), tolerance=0.5)["equal"] == [
        "a.weight",
        "a.bias",
    ]


def test_describe_files_by_strangers(real: Path) -> None:
    for path in sorted([*real.glob("ckpts/*/*.p*"), *real.glob("ckpts/lightning/*")]):
        if path.parent.name != "broken":
            told = describe(open_checkpoint(path))
            json.dumps(told)
            assert told["state_dicts"]
