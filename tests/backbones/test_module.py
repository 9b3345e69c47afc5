from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from lit_transfer.backbones import Preprocessing, create_backbone


class Own(nn.Module):
    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.enc = nn.ModuleDict({"a": nn.Conv2d(channels, 8, 3, 2), "b": nn.Conv2d(8, 16, 3, 2)})
        self.out = nn.Sequential(nn.Dropout(), nn.Linear(16, 10))
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.enc.values():
            x = layer(x).relu()
        return self.out(x.mean((2, 3)) * self.scale)


def test_the_caller_keeps_the_classifier_and_shares_the_rest() -> None:
    module = Own()
    names = list(module.state_dict())
    backbone = create_backbone(module, input_size=28)
    assert backbone(torch.rand(2, 1, 28, 28)).shape == (2, 16)
    assert isinstance(module.out[1], nn.Linear)
    assert list(module.state_dict()) == names
    assert module(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    assert backbone.enc["a"].weight is module.enc["a"].weight
    assert backbone.scale is module.scale
    assert list(backbone.state_dict()) == ["scale", "enc.a.weight", "enc.a.bias", "enc.b.weight", "enc.b.bias"]
    assert (backbone.name, backbone.weights, backbone.load_report) == ("Own", None, None)


def test_two_backbones_of_one_module_do_not_disturb_each_other() -> None:
    module = Own()
    one, two = create_backbone(module), create_backbone(module, classifier=None)
    assert (one.num_features, two.num_features) == (16, 10)


def test_its_first_convolution_gives_the_channels() -> None:
    assert create_backbone(Own()).preprocessing.mode == "L"
    assert create_backbone(Own(4), in_channels=4).preprocessing.mode == "RGBA"
    with pytest.raises(ValueError, match="in_channels=4: the first convolution of Own takes 1 channels"):
        create_backbone(Own(), in_channels=4)


def test_its_preprocessing_is_kept() -> None:
    module = Own(3)
    assert create_backbone(module).preprocessing.crop == 224
    module.preprocessing = Preprocessing(36, 32, (0.5,) * 3, (0.25,) * 3, "bicubic")
    assert create_backbone(module).preprocessing == module.preprocessing


def test_a_file_is_loaded_into_it(tmp_path: Path) -> None:
    source, module = torchvision.models.resnet18(weights=None), torchvision.models.resnet18(weights=None, num_classes=3)
    torch.save({"state_dict": {f"module.{k}": v for k, v in source.state_dict().items()}}, tmp_path / "best.pth.tar")
    backbone = create_backbone(module, weights=str(tmp_path / "best.pth.tar"))
    assert torch.equal(backbone.conv1.weight, source.conv1.weight)
    assert torch.equal(module.conv1.weight, source.conv1.weight)
    assert backbone.load_report is not None
    assert backbone.load_report.coverage == 1
    assert backbone.weights == str(tmp_path / "best.pth.tar")


def test_a_size_that_it_does_not_take_is_told() -> None:
    fixed = nn.Sequential(nn.Conv2d(1, 4, 5), nn.Flatten(), nn.Linear(4 * 24 * 24, 10))
    with pytest.raises(ValueError, match=r"does not run on input of shape \(2, 1, 224, 224\).* Pass the input_size"):
        create_backbone(fixed)
    assert create_backbone(fixed, input_size=28).num_features == 4 * 24 * 24


def test_a_module_without_features_is_refused() -> None:
    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).mean()

    with pytest.raises(ValueError, match="Loss gives no features"):
        create_backbone(Loss())


def test_classifiers_of_unequal_width_are_refused_by_name() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.deep = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3)
            self.small, self.large = nn.Linear(4, 10), nn.Linear(6, 10)

        def forward(self, x: Tensor) -> Tensor:
            first = self.stem(x)
            second = self.deep(first)
            return torch.stack([self.small(first.mean((2, 3))), self.large(second.mean((2, 3)))]).mean(0)

    with pytest.raises(ValueError, match=r"TwoHeads does not run without large.* several layers of unequal width"):
        create_backbone(TwoHeads())
