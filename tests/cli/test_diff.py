import json
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from lit_transfer.weights import save_weights


@pytest.fixture
def net(run) -> nn.Module:
    """A network whose weights lie in `a.pth`, in the folder of the run."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    nn.init.zeros_(net[0].bias)  # a difference from it is exact
    torch.save(net.state_dict(), "a.pth")
    return net


def test_equal_files_of_any_kind_and_prefix(run, net: nn.Module) -> None:
    torch.save({"epoch": 3, "state_dict": nn.DataParallel(nn.DataParallel(net)).state_dict()}, "b.pth.tar")
    save_weights(net, "b.safetensors")
    torch.save(net, "whole.pth", _use_new_zipfile_serialization=False)
    for other in ("a.pth", "b.pth.tar", "b.safetensors", "whole.pth"):
        code, out, err = run("diff", "a.pth", other)
        assert (code, err) == (0, "")
        assert out.endswith("\nequal: 7 tensors\n")
    assert "B  b.pth.tar, state dict 'state_dict', names below `module.module.`" in run("diff", "a.pth", "b.pth.tar")[1]


def test_what_differs_is_told_tensor_by_tensor(run, net: nn.Module) -> None:
    state = net.state_dict()
    state["0.bias"] = state["0.bias"] + torch.tensor([0.0, 0.25])
    state["0.weight"] = torch.zeros(2, 1, 5, 5)
    state["1.bias"] = state["1.bias"].double()
    state["2.weight"] = state.pop("1.weight")
    torch.save(state, "b.pth")
    code, out, err = run("diff", "a.pth", "b.pth")
    assert (code, err) == (1, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "0.weight shape 2x1x3x3 -> 2x1x5x5" in lines
    assert "0.bias values up to 0.25" in lines
    assert "1.bias dtype float32 -> float64" in lines
    assert "1.weight only in A" in lines
    assert "2.weight only in B" in lines
    assert lines[-1] == "different: shape 1, dtype 1, values 1, only in A 1, only in B 1; equal values: 4 tensors"
    told = json.loads(run("diff", "a.pth", "b.pth", "--json")[1])
    assert (told["is_equal"], told["different"]) == (False, {"0.bias": 0.25})


def test_tolerance_and_dtype(run, net: nn.Module) -> None:
    save_weights(net, "half.pth", dtype=torch.float16)
    assert run("diff", "a.pth", "half.pth", "--tolerance", "0.001")[0] == 1
    assert run("diff", "a.pth", "half.pth", "--any-dtype")[0] == 1
    assert run("diff", "a.pth", "half.pth", "--tolerance", "0.001", "--any-dtype")[0] == 0


def test_nan_equals_nan_and_nothing_else(run) -> None:
    torch.save({"w": torch.tensor([1.0, torch.nan]), "n": torch.tensor(2**60)}, "nan.pth")
    torch.save({"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(2**60 + 1)}, "number.pth")
    assert run("diff", "nan.pth", "nan.pth")[0] == 0
    code, out, _ = run("diff", "nan.pth", "number.pth")
    assert code == 1
    assert ["w", "values", "not", "finite"] in [line.split() for line in out.splitlines()]
    assert any(line.split()[:2] == ["n", "values"] for line in out.splitlines())
    assert json.loads(run("diff", "nan.pth", "number.pth", "--json")[1])["different"]["w"] is None


def test_our_checkpoint_beside_the_upstream_one(run, own_checkpoint: Path) -> None:
    assert run("convert", own_checkpoint, "plain.pth", "--to", "upstream")[0] == 0
    code, out, _ = run("diff", own_checkpoint, "plain.pth")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert code == 1
    assert "head.weight only in A" in lines
    assert "classifier.1.weight only in B" in lines
    assert lines[-1].endswith("equal values: 50 tensors")


def test_other_architectures_share_no_prefix(run, net: nn.Module) -> None:
    torch.save(nn.BatchNorm1d(64).state_dict(), "a.pth")  # its bias has the shape of some of the other's
    torch.save(torchvision.models.squeezenet1_1().state_dict(), "b.pth")
    code, out, _ = run("diff", "a.pth", "b.pth")
    assert code == 1
    assert "names below" not in out
    assert "... and 27 more; --all lists them" in out
    assert len(run("diff", "a.pth", "b.pth", "--all")[1].splitlines()) == 57 + 7


def test_which_of_several(run, net: nn.Module) -> None:
    state = net.state_dict()
    torch.save({"left": state, "right": {name: tensor + 1 for name, tensor in state.items()}}, "b.pth")
    code, _, err = run("diff", "a.pth", "b.pth")
    assert code == 2
    assert "choose with --key 'left' or --key 'right'" in err
    assert run("diff", "a.pth", "b.pth", "--other-key", "left")[0] == 0
    assert run("diff", "b.pth", "a.pth", "--key", "right")[0] == 1


def test_errors_are_one_line_and_code_two(run, net: nn.Module) -> None:
    Path("empty.pth").touch()
    for words in (["a.pth", "b.pth"], ["empty.pth", "a.pth"], ["a.pth"], ["a.pth", "a.pth", "--other-key", "ema"]):
        code, out, err = run("diff", *words)
        assert (code, out, err.count("\n")) == (2, "", 1), words
