import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from lit_transfer.weights import save_weights


class Command:
    """What a full unpickle would run; the escape sequence would recolour a terminal."""

    def __reduce__(self):
        return os.system, ("touch pwned\x1b[31m",)


@pytest.fixture(scope="module")
def training_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A legacy checkpoint of a training under DataParallel."""
    path = tmp_path_factory.mktemp("training") / "model_best.pth.tar"
    model = nn.DataParallel(torchvision.models.squeezenet1_1(num_classes=5))
    groups = [
        {"params": model.module.features.parameters(), "lr": 0.01},
        {"params": model.module.classifier.parameters()},
    ]
    content = {
        "epoch": 90,
        "state_dict": model.state_dict(),
        "optimizer": torch.optim.SGD(groups, lr=0.1, momentum=0.9).state_dict(),
        "best_acc1": 71.2345678,
        "meter": {"value": torch.ones(())},  # no network
        "args": argparse.Namespace(arch="squeezenet1_1", lr=0.1),
    }
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


def test_a_training_checkpoint(run, training_file: Path) -> None:
    code, out, err = run("inspect", training_file)
    assert (code, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "".join(lines[:2]).startswith(f"file {training_file}")  # a long path is folded
    assert "format legacy torch pickle, 2.9 MB" in lines
    assert "progress epoch 90" in lines
    assert "state_dict 52 725,061 2.9 MB float32 cpu module squeezenet1_1" in lines
    assert "0 50 0.01 0" in lines
    assert "1 2 0.1 0" in lines
    assert "all of them: momentum 0.9" in lines
    assert "best_acc1 71.2346" in lines
    assert "(object) argparse.Namespace" in lines
    assert "arch squeezenet1_1" in lines
    assert "state_dict 52 tensors, module.features.0.weight 64x3x3x3 ... module.classifier.1.bias 5" in lines
    assert lines[-1] == "argparse.Namespace"


def test_lines_fit_a_hundred_columns_and_end_without_blanks(run, training_file: Path, own_checkpoint: Path) -> None:
    for path in (training_file, own_checkpoint):
        lines = run("inspect", path, "--depth", 9)[1].splitlines()
        assert max(map(len, lines)) <= 100
        assert all(line == line.rstrip() for line in lines)


def test_json_for_programs(run, training_file: Path) -> None:
    told = json.loads(run("inspect", training_file, "--json")[1])
    (found,) = told["state_dicts"]
    assert told["epoch"] == 90
    assert told["optimizer_groups"][0]["lr"] == 0.01
    assert (found["prefix"], found["parameters"], found["backbone"]) == ("module", 725061, "squeezenet1_1")


def test_our_own_checkpoint(run, own_checkpoint: Path) -> None:
    lines = [" ".join(line.split()) for line in run("inspect", own_checkpoint)[1].splitlines()]
    assert "progress epoch 1, step 1" in lines
    assert "classes ant, bee, wasp" in lines
    assert any(line.startswith("head.decay 1 0.003 0.05") for line in lines)


def test_what_a_full_unpickle_would_run_is_told_and_not_run(run) -> None:
    torch.save({"state_dict": {"w": torch.ones(2)}, "x": Command(), "y\x1b[31m": 1}, "hostile.pth")
    code, out, _ = run("inspect", "hostile.pth")
    assert code == 0
    assert rf"{os.system.__module__}.system('touch pwned\x1b[31m')" in out
    assert "\x1b" not in out
    assert not Path("pwned").exists()


def test_a_pickled_module(run) -> None:
    torch.save(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), "whole.pth")
    out = run("inspect", "whole.pth")[1]
    assert "holds   object torch.nn.modules.container.Sequential" in out
    assert "(top level), a module" in out
    assert "torch.nn: BatchNorm2d, Conv2d, Sequential" in out


def test_tensors_of_one_state_dict(run) -> None:
    net = nn.BatchNorm1d(3)
    averaged = {name: tensor.clone() for name, tensor in net.half().state_dict().items()}
    torch.save({"model": nn.BatchNorm1d(3).state_dict(), "ema": averaged}, "two.pth")
    lines = [line.split() for line in run("inspect", "two.pth", "--key", "model")[1].splitlines()]
    assert lines[0] == ["name", "shape", "dtype", "device"]
    assert lines[2] == ["weight", "3", "float32", "cpu"]
    assert lines[-1] == ["num_batches_tracked", "scalar", "int64", "cpu"]
    assert "float16" in run("inspect", "two.pth", "--tensors")[1]  # the averaged one, as load_weights would take
    code, _, err = run("inspect", "two.pth", "--key", "modle")
    assert code == 2
    assert "'model'" in err


def test_metadata_and_shards_are_counted(run) -> None:
    save_weights({"a": torch.ones(100)}, "one.safetensors", metadata={"provenance": "a test"})
    save_weights({"b": torch.ones(200)}, "two.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    Path("model.safetensors.index.json").write_text(json.dumps(index))
    assert "provenance  a test" in run("inspect", "one.safetensors")[1]
    told = json.loads(run("inspect", "model.safetensors.index.json", "--json")[1])
    names = ("one.safetensors", "two.safetensors", "model.safetensors.index.json")
    assert told["bytes"] == sum(Path(name).stat().st_size for name in names)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("gone.pth", None, ["no checkpoint at gone.pth", "gone.pth.tar"]),
        ("cut.pth", b"PK\x03\x04 and no more", ["cut.pth", "truncated or damaged"]),
        ("empty.pth", b"", ["empty.pth is empty"]),
        ("page.pth", b"<!DOCTYPE html><p>404", ["page.pth", "a web page"]),
        ("folder", None, ["folder", "give the path of one file"]),
    ],
)
def test_what_is_no_checkpoint_is_one_line(run, name: str, content: bytes | None, told: list[str]) -> None:
    Path("folder").mkdir()
    Path("gone.pth.tar").touch()
    if content is not None:
        Path(name).write_bytes(content)
    code, out, err = run("inspect", name)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert all(words in err for words in told), err


def test_neither_torchvision_nor_lightning_is_imported_without_need(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.ones(2)}, tmp_path / "f.pth")
    code = (
        "import sys; from lit_transfer.cli import main\n"
        f"assert main(['inspect', {str(tmp_path / 'f.pth')!r}]) == 0\n"
        "assert not {'torchvision', 'lightning'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_files_by_strangers(run, real: Path) -> None:
    files = [
        path for path in sorted(real.glob("*/**/*")) if path.suffix in (".pth", ".pt", ".tar", ".th", ".pkl", ".ckpt")
    ]
    assert len(files) > 20
    for path in files:
        code, out, err = run("inspect", path)
        if path.parent.name == "broken":
            assert (code, out, err.count("\n")) == (2, "", 1), path
        else:
            assert (code, err) == (0, ""), path
            assert "parameters" in out, path
            assert all(len(line) <= 100 for line in out.splitlines() if " " in line), path


def test_tensors_that_are_not_read_are_told(run) -> None:
    torch.save({"a": torch.ones(2), "b": torch.eye(3).to_sparse()}, "sparse.pth")
    out = run("inspect", "sparse.pth")[1]
    assert "1 tensor of '' cannot be read: b: it is a sparse tensor" in " ".join(out.split())
