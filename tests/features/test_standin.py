"""Batches of 4, float32, one thread, CPU; within 1e-4 of the largest value, equal bit for bit where the front runs."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_transfer import freeze
from lit_transfer.features import Boundary, StandIn, apart

WHOLE, STEM = Boundary("", (), ("all",)), Boundary("0", (), ("stem",))


class Counted(nn.Sequential):
    """A front that counts its runs, and what trains behind it, with dropout."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
            nn.Sequential(nn.Conv2d(8, 4, 3), nn.Dropout(0.3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )
        self.runs = 0
        self[0][0].register_forward_hook(self.count)
        freeze(self, "0")
        nn.init.normal_(self[0][1].running_mean)

    def count(self, *_: Any) -> None:
        self.runs += 1


def stand_in(net: nn.Module, boundary: Boundary = STEM, **options: Any) -> tuple[StandIn, list[str]]:
    told: list[str] = []
    return StandIn(net, boundary, tell=told.append, **options), told


def test_the_front_runs_on_a_copy_and_the_rest_trains_as_ever() -> None:
    plain, net = Counted(), Counted()
    standing, told = stand_in(net)
    for side in (9, 9, 11, 9):
        images = torch.randn(4, 3, side, side)
        losses = []
        for one in (plain, net):
            torch.manual_seed(3)  # the same dropout, drawn as often
            one.zero_grad()
            losses.append(one(images).pow(2).mean())
            losses[-1].backward()
        assert apart(losses[1].detach(), losses[0].detach()) <= 1e-4
        assert apart(net[1][0].weight.grad, plain[1][0].weight.grad) <= 1e-4
    assert plain.runs == 4
    assert net.runs == 2 * 2, "two runs to compare, for each shape of images"
    assert told == ["runs on a copy: 1 normalisation layers folded"]
    assert net[1].training
    standing.remove()
    assert torch.equal(net.eval()(images), plain.eval()(images))


@pytest.mark.parametrize("change", ["trains", "moves"])
def test_a_front_that_changes_runs_itself(change: str) -> None:
    net, images = Counted().eval(), torch.randn(4, 3, 9, 9)
    standing, _ = stand_in(net)
    net(images)
    assert standing.is_current()
    if change == "trains":
        net[0][0].weight.requires_grad_(True)
    else:
        with torch.no_grad():
            net[0][0].weight.mul_(1.1)
    assert not standing.is_current()
    given = net(images)
    standing.remove()
    assert torch.equal(given, net(images))


def test_a_copy_of_the_module_runs_its_own_front() -> None:
    net, images = Counted().eval(), torch.randn(4, 3, 9, 9)
    standing, _ = stand_in(net)
    net(images)
    copied = copy.deepcopy(net)
    with torch.no_grad():
        copied[0][0].weight.zero_()
        given = copied(images)
    standing.remove()
    assert not torch.equal(given, net(images))


class Skip(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.mean()


def test_what_cannot_stand_in_is_told() -> None:
    images = torch.randn(4, 3, 9, 9)
    skipping = Skip(*Counted()).eval()
    awake = Counted()
    for module in awake[0].modules():
        vars(module)["training"] = True
    for net, why in (
        (skipping, "more than one tensor crosses"),
        (awake, "BatchNorm2d. has no gradient but is in train"),
    ):
        _, told = stand_in(net)
        net(images)
        net(images)
        assert len(told) == 1
        assert "runs as it is for images of shape (3, 9, 9): ValueError" in told[0]
        assert why in told[0].replace(")", ".")


def test_other_shapes_than_the_first_eight_are_left_to_the_front() -> None:
    net = Counted().eval()
    standing, told = stand_in(net)
    for side in range(9, 20):
        given = net(torch.ones(2, 3, side, side))
    standing.remove()
    assert torch.equal(given, net(torch.ones(2, 3, side, side)))
    assert told[1:] == ["runs as it is for images of any other shape than the first 8"]


def test_it_is_compiled_for_the_batches_of_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    net, images = Counted(), torch.randn(4, 3, 9, 9)
    _, told = stand_in(net, fast="compile")
    with torch.inference_mode():
        net(images[:2])
    assert told == []
    net(images)
    assert told == ["runs on a copy: 1 normalisation layers folded, compiled for batches of 4"]
