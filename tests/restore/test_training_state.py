"""Any training checkpoint read for a model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from lit_transfer.restore import is_as_written, read_training_state
from lit_transfer.weights import WeightsError, open_checkpoint


class LeNet(nn.Module):
    """The network of the course's files."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, classes)


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net


def test_the_courses_interrupted_run(real: Path) -> None:
    file = real / "ckpts/course/lesson-28_checkpoint_4_epoch.pkl"
    model = Wrapped(LeNet())
    state = read_training_state(model, file)
    assert (state.kind, state.epoch, state.step, state.fresh, state.lost) == ("dictionary", 5, None, (), ())
    assert state.optimizer is not None
    assert state.optimizer.family == "SGD"
    shapes = {name: tuple(moments["momentum_buffer"].shape) for name, moments in state.optimizer.states.items()}
    assert shapes == {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert read_training_state(model, file, epoch_means="next").epoch == 4
    weights = state.weights(model)
    content = torch.load(file, weights_only=True)
    assert all(torch.equal(weights[f"net.{n}"], value) for n, value in content["model_state_dict"].items())


@pytest.mark.parametrize(
    ("name", "epoch", "step"), [("model.ckpt", 5, 4295), ("version_0__epoch=9-step=8600.ckpt", 10, 8600)]
)
def test_lightnings_own_counters(real: Path, name: str, epoch: int, step: int) -> None:
    """859 steps an epoch; the first file was saved after five epochs and calls it epoch 5, the other calls ten nine."""
    checkpoint = open_checkpoint(real / "ckpts/lightning" / name)
    model = same_shapes({name: tensor.shape for name, tensor in checkpoint.state_dict("state_dict").items()})
    state = read_training_state(model, checkpoint)
    assert (state.kind, state.epoch, state.step) == ("lightning", epoch, step)


def test_very_old_files_keyed_by_id(real: Path) -> None:
    file = real / "ckpts/cgcnn/band-gap.pth.tar"
    checkpoint = open_checkpoint(file)
    names = list(checkpoint.state_dict("state_dict"))
    model = same_shapes({name: tensor.shape for name, tensor in checkpoint.state_dict("state_dict").items()})
    state = read_training_state(model, file)
    assert state.optimizer is not None
    parameters = [name for name in names if "running" not in name and "num_batches" not in name]
    assert list(state.optimizer.states) == parameters
    saved = checkpoint.root["optimizer"]
    first = saved["param_groups"][0]["params"][0]
    moments = state.optimizer.states[parameters[0]]["momentum_buffer"]
    assert torch.equal(moments.read(), saved["state"][first]["momentum_buffer"].read())
    assert state.scores == {"best_mae_error": pytest.approx(0.369, abs=1e-3)}
    assert set(state.lost) == {"normalizer", "args"}
    assert {moments.location} == {"cuda:0"}
    assert moments.read().device.type == "cpu"


def same_shapes(shapes: dict[str, tuple[int, ...]]) -> nn.Module:
    """A module whose parameters and buffers have these names."""
    root = nn.Module()
    for name, shape in shapes.items():
        *parents, leaf = name.split(".")
        module = root
        for part in parents:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module._modules[part]
        if leaf.startswith("running") or leaf == "num_batches_tracked":
            kind = torch.int64 if leaf == "num_batches_tracked" else torch.float32
            module.register_buffer(leaf, torch.zeros(shape, dtype=kind))
        else:
            module.register_parameter(leaf, nn.Parameter(torch.zeros(shape)))
    return root


REAL = (
    "antispoof/2.7_80x80_MiniFASNetV2.pth",
    "base_net/dicenet_s_0.2_pascal_256x256.pth",
    "course/lesson-28_model.pkl",
    "course/lesson-28_model_state_dict.pkl",
    "course/lesson-30_model_in_gpu_0.pkl",
    "course/lesson-30_model_in_multi_gpu.pkl",
    "dataparallel_cifar/resnet20-12fca82f.th",
    "dataparallel_cifar/resnet32-d509ac18.th",
    "kuangliu_style/mobilenet-x0_25.pth",
    "kuangliu_style/mobilenetv3_x25.pth",
    "kuangliu_style/squeezenet.pth",
    "lightning/model.ckpt",
    "lightning/version_0__epoch=9-step=8600.ckpt",
)


@pytest.mark.parametrize("path", REAL)
def test_every_real_checkpoint_into_a_plain_and_a_wrapped_model(real: Path, path: str) -> None:
    checkpoint = open_checkpoint(real / "ckpts" / path)
    prefix = "module." if all(name.startswith("module.") for name in checkpoint.state_dict()) else ""
    theirs = {name.removeprefix(prefix): tensor for name, tensor in checkpoint.state_dict().items()}
    plain = same_shapes({name: tensor.shape for name, tensor in theirs.items()})
    for model, ours in ((plain, ""), (nn.DataParallel(plain), "module."), (Wrapped(Wrapped(plain)), "net.net.")):
        state = read_training_state(model, checkpoint)
        weights = state.weights(model)
        assert not state.fresh
        assert all(torch.equal(weights[ours + name], tensor.read()) for name, tensor in theirs.items())


def test_the_trained_network_is_taken_and_not_its_average(tmp_path: Path) -> None:
    plain, average = nn.Linear(2, 2).state_dict(), nn.Linear(2, 2).state_dict()
    torch.save({"model": plain, "model_ema": average, "epoch": 1}, tmp_path / "file.pth")
    model = nn.Linear(2, 2)
    assert torch.equal(read_training_state(model, tmp_path / "file.pth").weights(model)["weight"], plain["weight"])


def trained(network: nn.Module, optimizer: Any, batch: torch.Tensor) -> Any:
    network(batch).square().sum().backward()
    optimizer.step()
    return optimizer


def test_a_new_head_is_fresh_and_so_are_its_moments(tmp_path: Path) -> None:
    old = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    optimizer = trained(old, Adam(old.parameters()), torch.ones(2, 3))
    torch.save({"model": old.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 0}, tmp_path / "file.pth")
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    state = read_training_state(model, tmp_path / "file.pth")
    assert state.fresh == ("1.weight", "1.bias")
    assert state.optimizer is not None
    assert list(state.optimizer.states) == ["0.weight", "0.bias"]
    assert state.step == 1
    assert torch.equal(state.weights(model)["1.weight"], model[1].weight)


class Headed(nn.Module):
    """As this library's modules are: upstream names under `backbone`, and a head of its own name."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.add_module("conv1", nn.Conv2d(3, 4, 3))
        self.backbone.add_module("conv2", nn.Conv2d(4, 4, 3))
        self.head = nn.Linear(4, classes)


def test_a_classifier_of_another_name_is_the_head(tmp_path: Path) -> None:
    upstream = nn.Module()
    for name, module in (("conv1", nn.Conv2d(3, 4, 3)), ("conv2", nn.Conv2d(4, 4, 3)), ("fc", nn.Linear(4, 2))):
        upstream.add_module(name, module)
    torch.save({"state_dict": upstream.state_dict(), "epoch": 0}, tmp_path / "file.pth")
    model = Headed()
    state = read_training_state(model, tmp_path / "file.pth")
    assert state.fresh == ()
    assert "head.weight, head.bias are the file's fc.weight, fc.bias" in str(state)
    assert torch.equal(state.weights(model)["head.weight"], upstream.fc.weight)
    assert read_training_state(Headed(3), tmp_path / "file.pth").fresh == ("head.weight", "head.bias")
    model.head = nn.Linear(4, 2, bias=False)  # the file's classifier would lose its bias
    assert read_training_state(model, tmp_path / "file.pth").fresh == ("head.weight",)


def test_tied_parameters_have_their_moments_once(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False), nn.Linear(3, 2))
        model[1].weight = model[0].weight
        return model

    old = tied()
    optimizer = trained(old, SGD(old.parameters(), lr=0.1, momentum=0.9), torch.ones(2, 3))
    torch.save({"model": old.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "file.pth")
    state = read_training_state(tied(), tmp_path / "file.pth")
    assert state.optimizer is not None
    assert list(state.optimizer.states) == [name for name, _ in old.named_parameters()]


def test_a_file_of_another_model_and_moments_of_another_model_are_refused(tmp_path: Path) -> None:
    old, other = nn.Linear(3, 4), nn.Linear(5, 4)
    optimizer = trained(other, SGD(other.parameters(), lr=0.1, momentum=0.9), torch.ones(2, 5))
    torch.save({"model": old.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "file.pth")
    with pytest.raises(WeightsError, match=r"file.pth: .*parameter 0 have the shape \[4, 5\], and weight has \[4, 3\]"):
        read_training_state(nn.Linear(3, 4), tmp_path / "file.pth")
    assert read_training_state(nn.Linear(3, 4), tmp_path / "file.pth", optimizer="fresh").optimizer is None
    with pytest.raises(WeightsError, match="does not fit"):
        read_training_state(nn.Bilinear(3, 3, 4), tmp_path / "file.pth")


def test_a_given_order_names_the_files_weights(tmp_path: Path) -> None:
    old = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    optimizer = trained(old, SGD([old[1].weight, old[0].weight], lr=0.1, momentum=0.9), torch.ones(2, 3))
    weights = {f"module.{name}": value for name, value in old.state_dict().items()}
    torch.save({"model": weights, "optimizer": optimizer.state_dict()}, tmp_path / "file.pth")
    names = ["module.1.weight", "module.0.weight"]
    state = read_training_state(old, tmp_path / "file.pth", parameter_names=names)
    assert state.optimizer is not None
    moments = state.optimizer.states["1.weight"]["momentum_buffer"].read()
    assert torch.equal(moments, optimizer.state[old[1].weight]["momentum_buffer"])
    with pytest.raises(WeightsError, match=r"'module.2.weight' is none of .*Nearest: module.1.weight"):
        read_training_state(old, tmp_path / "file.pth", parameter_names=["module.2.weight", "module.0.weight"])


def test_what_lightning_may_take_as_it_is(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    weights = model.state_dict()

    def takes(state: dict[str, Any], *, strict: bool = True, **more: Any) -> bool:
        torch.save({"state_dict": state, "pytorch-lightning_version": "2.6.0", **more}, tmp_path / "file.ckpt")
        return is_as_written(open_checkpoint(tmp_path / "file.ckpt"), weights, strict=strict)

    assert takes(dict(weights))
    assert not takes({f"module.{name}": value for name, value in weights.items()})
    assert not takes({"weight": weights["weight"]})
    assert takes({"weight": weights["weight"]}, strict=False)
    assert not takes({"weight": torch.zeros(3, 2), "bias": weights["bias"]}, strict=False)
