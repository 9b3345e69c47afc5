"""Batches of 2 to 4, float32, one thread, CPU; the bound is relative to the largest value."""

import threading

import pytest
import torch
from torch import Tensor, nn

from lit_transfer import freeze
from lit_transfer.backbones import create_backbone
from lit_transfer.features import Boundary, Serving, WorkingCopy, find_boundary, outline_of, run_until

WHOLE = Boundary("", (), ("all",))


def shaken(module: nn.Module) -> nn.Module:
    """Give norm layers statistics and affines that matter."""
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 2)
            nn.init.uniform_(part.weight, 0.5, 2)
            nn.init.normal_(part.bias)
    return module.eval()


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


class Twice(nn.Module):
    """A convolution and a norm that are each used twice: folded, they would be wrong by half."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.norm(self.conv(x))))


class Beside(nn.Module):
    """What the convolution gives is used without the norm too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        given = self.conv(x)
        return self.norm(given) + given


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) if x.mean() > -10 else x


NETS = {
    "folds": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)), 1),
    "norm first": (nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)), 0),
    "no norm": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), 0),
    "twice": (Twice(), 0),
    "beside": (Beside(), 0),
    "branches": (Branches(), 0),
}


@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_what_can_be_folded_is_and_nothing_else(name: str) -> None:
    net, folded = NETS[name]
    shaken(net)
    images = torch.randn(4, 3, 9, 9)
    copied = WorkingCopy(net, WHOLE)
    assert copied.folded == folded
    assert (copied.unfolded is not None) == (name == "branches")
    assert apart(copied(images), net(images)) <= 1e-5


@pytest.mark.parametrize(("name", "folded"), [("mobilenet_v3_small", 34), ("squeezenet1_0", 0), ("timm/resnet18", 20)])
@torch.no_grad()
def test_real_architectures_stay_within_the_bound(name: str, folded: int) -> None:
    backbone = shaken(create_backbone(name, weights=None))
    images = torch.randn(2, 3, 96, 96)
    copied = WorkingCopy(backbone, WHOLE)
    assert copied.folded == folded
    assert apart(copied(images), backbone(images)) <= 1e-4


@torch.no_grad()
def test_only_the_front_is_folded_and_the_backbone_stays_as_it_was() -> None:
    backbone = shaken(create_backbone("mobilenet_v3_small", weights=None))
    freeze(backbone, ["stem", "stage1"])
    boundary = find_boundary(backbone)
    assert boundary is not None
    state = {name: value.clone() for name, value in backbone.state_dict().items()}
    images = torch.randn(2, 3, 64, 64)
    outline, _, feature = outline_of(lambda: backbone(images), backbone, boundary)
    serving = Serving(backbone, boundary, outline)
    copied = WorkingCopy(backbone, boundary)
    assert 0 < copied.folded < 34
    assert apart(copied(images), feature) <= 1e-4, "it takes images though the backbone is being served"
    assert torch.equal(run_until(lambda: backbone(images), backbone, backbone.get_submodule(boundary.unit))[1], feature)
    serving.remove()
    assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())
    for parameter in backbone.parameters():
        parameter.zero_()
    assert apart(copied(images), feature) <= 1e-4, "it shares nothing"


@torch.no_grad()
def test_hooks_are_not_copied_with_what_they_are_bound_to() -> None:
    class Owner:
        def __init__(self) -> None:
            self.lock, self.calls = threading.Lock(), 0  # cannot be copied

        def hook(self, *_: object) -> None:
            self.calls += 1

    net, owner = shaken(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))), Owner()
    net[0].register_forward_hook(owner.hook)
    copied = WorkingCopy(net, WHOLE)
    copied(torch.randn(2, 3, 8, 8))
    assert owner.calls == 0
    net(torch.randn(2, 3, 8, 8))
    assert owner.calls == 1
