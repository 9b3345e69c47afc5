"""Files that strangers published, into models of their own architecture: the path alone, and the values torch reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from lit_transfer.weights import WeightsError, load_weights, open_checkpoint, save_weights

Shapes = Mapping[str, tuple[int, ...]]

# File -> (where its state dict lies, the prefix that its network has not).
FILES = {
    "ckpts/antispoof/2.7_80x80_MiniFASNetV2.pth": ("", "module."),
    "ckpts/base_net/dicenet_s_0.2_pascal_256x256.pth": ("", ""),
    "ckpts/cgcnn/band-gap.pth.tar": ("state_dict", ""),
    "ckpts/cgcnn/semi-metal-classification.pth.tar": ("state_dict", ""),
    "ckpts/course/lesson-28_checkpoint_4_epoch.pkl": ("model_state_dict", ""),
    "ckpts/course/lesson-28_model.pkl": ("", ""),
    "ckpts/course/lesson-28_model_state_dict.pkl": ("", ""),
    "ckpts/course/lesson-30_model_in_gpu_0.pkl": ("", ""),
    "ckpts/course/lesson-30_model_in_multi_gpu.pkl": ("", "module."),
    "ckpts/dataparallel_cifar/resnet20-12fca82f.th": ("state_dict", "module."),
    "ckpts/dataparallel_cifar/resnet32-d509ac18.th": ("state_dict", "module."),
    "ckpts/heads_only/v0.0_squeeze.pth": ("", ""),
    "ckpts/heads_only/v0.0_vgg.pth": ("", ""),
    "ckpts/kuangliu_style/mobilenet-x0_25.pth": ("net", "module."),
    "ckpts/kuangliu_style/mobilenetv3_x25.pth": ("net", "module."),
    "ckpts/kuangliu_style/squeezenet.pth": ("net", "module."),
    "ckpts/lightning/lightning.pt": ("", ""),
    "ckpts/lightning/model.ckpt": ("state_dict", "model."),
    "ckpts/lightning/version_0__epoch=9-step=8600.ckpt": ("state_dict", "model."),
    "ckpts/plain/cifar_net.pth": ("", ""),
    "ckpts/plain/net_params_72p.pkl": ("", ""),
    "ckpts/squeezenets/HamzaElhmd_squeezenet_s.pt": ("", ""),
    "ckpts/squeezenets/Leaforia_squeezenet.pth": ("", ""),
    "ckpts/squeezenets/nikhil_squeezenet_model.pth": ("", ""),
    "weights/squeezenet1_0_imagenet_frozen_HamzaElhmd.pt": ("", ""),
}
PARTIAL = "weights/resnet18_partial_from_truncated_5c106cde.pt"
BROKEN = {
    "ckpts/broken/git_lfs_pointer.pt": "git lfs pull",
    "ckpts/broken/plain_pickle_of_strings.pkl": r"torch\.save did not write",
    "ckpts/broken/truncated_zip_resnet18-f37072fd.pth": "truncated or damaged.*download it again",
}
WHOLE = "ckpts/course/lesson-28_model.pkl"  # a module of a lost class: torch reads it only if it runs what is in it


def network(shapes: Shapes) -> nn.Module:
    """The architecture that has tensors of these names and shapes, with a fresh value in each."""
    owners: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        owners.setdefault(name.rpartition(".")[0], {})[name.rpartition(".")[2]] = shape
    root = nn.Module()
    for place, tensors in owners.items():
        *path, last = place.split(".")
        parent = root
        for segment in path:
            if not hasattr(parent, segment):
                parent.add_module(segment, nn.Module())
            parent = parent.get_submodule(segment)
        parent.add_module(last, layer(tensors))
    return root


def layer(shapes: Shapes) -> nn.Module:
    weight, bias = shapes["weight"], "bias" in shapes
    if "running_mean" in shapes:
        return nn.BatchNorm2d(weight[0])
    if len(weight) == 1:
        return nn.PReLU(weight[0])
    if len(weight) == 2:
        return nn.Linear(weight[1], weight[0], bias=bias)
    return nn.Conv2d(weight[1], weight[0], (weight[2], weight[3]), bias=bias)


def read_by_torch(path: Path) -> Any:
    scalar = np.float64(0).__reduce__()[0]  # type: ignore[index]  # numpy's stub calls it a string
    with torch.serialization.safe_globals([(scalar, "numpy.core.multiarray.scalar"), np.dtype, np.dtypes.Float64DType]):
        return torch.load(path, map_location="cpu", weights_only=True)


def own_state(real: Path, name: str) -> dict[str, Tensor]:
    """What torch reads, under the names of the network."""
    place, prefix = FILES[name]
    content = read_by_torch(real / name)
    return {n.removeprefix(prefix): tensor for n, tensor in (content[place] if place else content).items()}


def holds(model: nn.Module, expected: Mapping[str, Tensor]) -> bool:
    """Whether each tensor is the expected one; files of before 2018 have no counters."""
    return all(
        torch.equal(tensor, expected[name])
        for name, tensor in model.state_dict().items()
        if name in expected or not name.endswith("num_batches_tracked")
    )


def test_every_file_is_in_a_test(real: Path) -> None:
    found = {str(p.relative_to(real)) for folder in ("ckpts/*/*", "weights/*") for p in real.glob(folder)}
    assert {name for name in found if not name.endswith("LICENSE")} == {*FILES, *BROKEN, PARTIAL}


@pytest.mark.parametrize("name", [name for name in FILES if name != WHOLE])
def test_a_file_fills_its_own_network(real: Path, name: str) -> None:
    expected = own_state(real, name)
    model = network({n: tuple(tensor.shape) for n, tensor in expected.items()})
    report = load_weights(model, real / name)
    assert holds(model, expected)
    assert report.coverage == 1
    assert (report.key, report.unexpected) == (FILES[name][0], ())


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_clear_error(real: Path, name: str) -> None:
    with pytest.raises(WeightsError, match=BROKEN[name]) as caught:
        open_checkpoint(real / name)
    assert Path(name).name in str(caught.value)


def test_a_whole_model_and_its_state_dict_are_equal(real: Path) -> None:
    expected = own_state(real, "ckpts/course/lesson-28_model_state_dict.pkl")
    model = network({n: tuple(tensor.shape) for n, tensor in expected.items()})
    load_weights(model, real / WHOLE)  # of the class LeNet2 of somebody's __main__
    assert holds(model, expected)


def test_lightning_and_bare_are_equal_but_for_rounding(real: Path) -> None:
    bare, wrapped = "ckpts/lightning/lightning.pt", "ckpts/lightning/model.ckpt"
    shapes = {n: tuple(tensor.shape) for n, tensor in own_state(real, bare).items()}
    one, other = network(shapes), network(shapes)
    load_weights(one, real / bare)
    load_weights(other, real / wrapped)
    for name, tensor in one.state_dict().items():  # the author saved them at two moments: 1.3e-6 apart
        torch.testing.assert_close(tensor, other.state_dict()[name], rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", [name for name in FILES if FILES[name][1] == "module."])
def test_single_and_parallel_are_equal(real: Path, tmp_path: Path, name: str) -> None:
    """The file, saved from DataParallel, and its twin as one GPU saves it, into a plain and a wrapped network."""
    twin = save_weights(open_checkpoint(real / name).state_dict(), tmp_path / "single.pth", strip="module")
    expected = own_state(real, name)
    for path in (real / name, twin):
        plain = network({n: tuple(tensor.shape) for n, tensor in expected.items()})
        wrapped = nn.DataParallel(network({n: tuple(tensor.shape) for n, tensor in expected.items()}))
        load_weights(plain, path)
        load_weights(wrapped, path)
        assert holds(plain, expected)
        assert holds(wrapped.module, expected)


def test_a_backbone_takes_its_part_of_a_segmentation_file(real: Path) -> None:
    name = "ckpts/base_net/dicenet_s_0.2_pascal_256x256.pth"
    inside = {n.removeprefix("base_net."): t for n, t in own_state(real, name).items() if n.startswith("base_net.")}
    model = network({n: tuple(tensor.shape) for n, tensor in inside.items()})
    report = load_weights(model, real / name)
    assert report.prefix == "base_net"
    assert holds(model, inside)


def own_names(state: Mapping[str, Tensor], features: bool) -> dict[str, Tensor]:
    return {n.removeprefix("features.") if features else n: tensor for n, tensor in state.items()}


@pytest.mark.parametrize("name", [name for name in FILES if "squeezenet" in name and "kuangliu" not in name])
def test_squeezenets_of_any_number_of_classes(real: Path, name: str) -> None:
    expected = own_state(real, name)
    for classes in (2, 4, 7):
        model = torchvision.models.squeezenet1_0(num_classes=classes)
        report = load_weights(model, real / name)
        fresh = classes != expected["classifier.1.bias"].shape[0]
        assert set(report.mismatched) == ({"classifier.1.weight", "classifier.1.bias"} if fresh else set())
        assert holds(model if not fresh else model.features, own_names(expected, fresh))
    headless = torchvision.models.squeezenet1_0()
    headless.classifier = nn.Identity()
    assert load_weights(headless, real / name).coverage == 1


def test_a_partial_file_loads_with_the_argument_that_the_error_names(real: Path) -> None:
    model = torchvision.models.resnet18()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError, match="min_coverage=") as caught:
        load_weights(model, real / PARTIAL)
    assert holds(model, before)
    named = float(str(caught.value).split("min_coverage=")[1].split(" ")[0])
    assert set(load_weights(model, real / PARTIAL, min_coverage=named).loaded) == set(read_by_torch(real / PARTIAL))
    assert holds(model, {**before, **read_by_torch(real / PARTIAL)})
