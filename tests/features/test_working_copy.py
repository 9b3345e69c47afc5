"""Batches of 2 to 4, float32, one thread, CPU; the bound is relative to the largest value."""

import re
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_transfer import freeze
from lit_transfer.backbones import create_backbone
from lit_transfer.features import (
    Boundary,
    Serving,
    WorkingCopy,
    apart,
    bound_of,
    checked_copy,
    find_boundary,
    outline_of,
    run_until,
)

WHOLE = Boundary("", (), ("all",))


def shaken(module: nn.Module) -> nn.Module:
    """Give norm layers statistics and affines that matter."""
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 2)
            if part.affine:
                nn.init.uniform_(part.weight, 0.5, 2)
                nn.init.normal_(part.bias)
    return module.eval()


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
    "no affine": (nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False), nn.ReLU()), 1),
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


@torch.no_grad()
def test_a_norm_in_float32_is_folded_into_a_narrower_convolution() -> None:
    net = shaken(nn.Sequential(nn.Conv2d(3, 4, 3).bfloat16(), nn.BatchNorm2d(4)))
    images = torch.randn(4, 3, 9, 9, dtype=torch.bfloat16)
    copied = WorkingCopy(net, WHOLE)
    assert copied.folded == 1
    assert apart(copied(images), net(images)) <= 1e-2


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
        if parameter.requires_grad:
            parameter.zero_()
    assert apart(copied(images), feature) <= 1e-4, "it shares nothing that trains"


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@torch.no_grad()
def test_of_frozen_linear_layers_no_second_copy_is_held(dtype: torch.dtype | None) -> None:
    net = shaken(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5), nn.LayerNorm(5)))
    net.requires_grad_(False)
    state = {name: (value, value.clone(), value._version) for name, value in net.state_dict(keep_vars=True).items()}
    copied = WorkingCopy(net, WHOLE, dtype=dtype)
    own = {parameter.data_ptr() for parameter in copied.module.parameters()}
    assert (net[3].weight.data_ptr() in own) == (dtype is None)
    assert net[0].weight.data_ptr() not in own
    assert apart(copied(torch.ones(2, 3, 4, 4)), net(torch.ones(2, 3, 4, 4))) <= (1e-4 if dtype is None else 4e-2)
    for name, value in net.state_dict(keep_vars=True).items():
        given, before, version = state[name]
        assert value is given
        assert value._version == version
        assert torch.equal(value, before)
        assert value.dtype == before.dtype


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


@torch.no_grad()
def test_a_copy_that_is_compiled_gives_the_same_up_to_any_boundary_and_leaves_the_options_of_torch() -> None:
    from torch._inductor import config

    net = shaken(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)))
    before, images = config.save_config(), torch.randn(4, 3, 9, 9)
    copied = WorkingCopy(net, Boundary("2", ("0", "1"), ("stem",)))
    copied.compile(images)
    assert copied._compiled is not None
    with torch.inference_mode():
        given = torch.randn(4, 3, 9, 9)
        assert apart(copied(given), net[:3](given)) <= 1e-5
    assert apart(copied(images[:3]), net[:3](images[:3])) <= 1e-5, "of another size it runs as it is"
    assert config.save_config() == before


@torch.no_grad()
def test_in_bfloat16_it_takes_and_gives_what_the_backbone_does() -> None:
    net, images = shaken(create_backbone("mobilenet_v3_small", weights=None)), torch.randn(2, 3, 64, 64)
    copied, why = checked_copy(net, WHOLE, images, net(images), fast="bfloat16")
    assert copied is not None
    assert why == "34 normalisation layers folded, in bfloat16"
    assert copied(images).dtype == torch.float32
    assert 1e-4 < apart(copied(images), net(images)) <= bound_of("bfloat16")


class Hooked(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self[0].register_forward_hook(lambda *given: given[2] * 1.5)


@pytest.mark.parametrize(
    ("net", "options", "expected"),
    [
        (
            NETS["branches"][0],
            {"fast": "compile"},
            "none could be: TraceError: .*, not compiled: ValueError: TraceError",
        ),
        (Hooked(), {}, "a copy differs by .* of the largest value, more than 0.0001"),
        (NETS["folds"][0], {"fast": "compile", "batch_size": 6, "served": True}, "not compiled, since it goes on from"),
    ],
)
@torch.no_grad()
def test_what_was_done_and_what_was_left_out_is_told(net: Any, options: Any, expected: str) -> None:
    shaken(net)
    images = torch.randn(4, 3, 9, 9)
    features = net(images)
    if options.get("served"):
        early = Boundary("2", ("0", "1"), ("stem",))
        outline, _, images = outline_of(lambda: net(images), net, early)
        options = options | {"served": (early, outline)}
        images = images.view(-1, *outline.carried)
    copied, why = checked_copy(net, WHOLE, images, features, **options)
    assert re.search(expected, why)
    assert (copied is None) == isinstance(net, Hooked)


class Stateful(nn.Module):
    """A unit of the user's own that keeps something; what is traced runs without its code."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.calls = nn.Conv2d(3, 2, 3, stride=8), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.conv(x)


@pytest.mark.parametrize("unit", ["", "0", "1"])
@torch.no_grad()
def test_threads_that_each_take_a_piece_give_the_same(unit: str, threads: Any) -> None:
    """Two threads, 20 images of 3 x 224 x 224: three pieces."""
    net = shaken(nn.Sequential(Stateful(), nn.BatchNorm2d(2), nn.ReLU())).requires_grad_(False)
    copied = WorkingCopy(net, Boundary(unit, (), ("stem",)))
    images = torch.randn(20, 3, 224, 224)
    traced = copied.module[0].calls
    with threads(2):
        features = copied(images)
        assert torch.get_num_threads() == 2
    assert copied.module[0].calls == traced
    expected = net[: int(unit) + 1](images) if unit else net(images)
    assert apart(features, expected) <= bound_of(True)


@torch.no_grad()
def test_what_cannot_be_traced_is_run_by_one_thread_at_a_time(threads: Any) -> None:
    net = shaken(nn.Sequential(Branches(), Stateful()))
    copied = WorkingCopy(net, WHOLE)
    with threads(2):
        assert apart(copied(torch.ones(20, 3, 226, 226)), net(torch.ones(20, 3, 226, 226))) <= bound_of(True)
    assert copied.module[1].calls == 3
