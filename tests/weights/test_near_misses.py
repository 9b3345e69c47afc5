"""Files of other architectures are refused, however many of their tensors fit."""

import copy
from collections.abc import Iterator
from functools import cache

import pytest
import torch
import torchvision
from torch import nn

from lit_transfer.weights import Checkpoint, WeightsError, load_weights, open_checkpoint, plan_weights

NAMES = torchvision.models.list_models(module=torchvision.models)


@cache
def on_meta(name: str, classes: int = 1000) -> nn.Module:
    """A torchvision model without memory. RegNet computes with its parameters while it is built."""
    register = nn.Module.register_parameter

    def to_meta(self: nn.Module, key: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        register(self, key, parameter)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "register_parameter", to_meta)
        for draw in ("kaiming_normal_", "kaiming_uniform_", "xavier_uniform_", "normal_", "trunc_normal_", "uniform_"):
            patch.setattr(nn.init, draw, lambda tensor, *_, **__: tensor)  # drawing nothing takes half the time
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        return torchvision.models.get_model(name, weights=None, num_classes=classes, **options).to("meta")


@cache
def file_of(name: str) -> Checkpoint:
    return open_checkpoint(on_meta(name).state_dict())


def is_refused(source: str, target: str) -> bool:
    try:
        return not plan_weights(on_meta(target), file_of(source)).complete
    except WeightsError:
        return True


def pairs() -> Iterator[tuple[str, str]]:
    """Each model with its neighbours in the sorted list, which are its family, and each fourth with another."""
    for i, source in enumerate(NAMES):
        for j, target in enumerate(NAMES):
            if source != target and (abs(i - j) <= 1 or (7 * i + j) % 316 == 0):
                yield source, target


def test_pairs_of_torchvision() -> None:
    assert [pair for pair in pairs() if not is_refused(*pair)] == []


@pytest.mark.slow
def test_all_pairs_of_torchvision() -> None:
    assert [(a, b) for a in NAMES for b in NAMES if a != b and not is_refused(a, b)] == []


@pytest.mark.parametrize("name", NAMES)
def test_each_model_takes_its_own_file_with_another_number_of_classes(name: str) -> None:
    plan = plan_weights(on_meta(name, 7), on_meta(name).state_dict())
    assert plan.problems == ()
    assert plan.coverage == 1
    assert all(entry.action == "load" or entry.action == "fresh" for entry in plan.entries)
    assert len(plan.of("fresh")) <= 6


@pytest.mark.parametrize(
    ("source", "target"), [("resnet152", "resnet101"), ("vgg11", "vgg13_bn"), ("squeezenet1_1", "squeezenet1_0")]
)
def test_the_known_near_misses(source: str, target: str) -> None:
    with pytest.raises(WeightsError, match=r"does not fit: .*(accepts that|skip)"):
        load_weights(on_meta(target), on_meta(source).state_dict())


@pytest.mark.parametrize("name", ["alexnet", "vgg11", "vgg16_bn"])
def test_features_alone_are_accepted(name: str) -> None:
    features = {n: t for n, t in on_meta(name).state_dict().items() if n.startswith("features.")}
    plan = plan_weights(on_meta(name), features)
    assert plan.complete
    assert plan.head == ("classifier",)
    assert plan_weights(on_meta(name), features, head=["classifier"]).complete
    cut = copy.deepcopy(on_meta(name))
    cut.classifier[-1] = nn.Identity()
    assert plan_weights(cut, on_meta(name).state_dict()).complete


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("name", ["resnet18", "vit_b_32", "efficientnet_b0", "densenet121", "swin_t"])
def test_a_part_of_a_file_is_refused(name: str, fraction: float) -> None:
    state = on_meta(name).state_dict()
    part = dict(list(state.items())[: int(fraction * len(state))])
    assert not plan_weights(on_meta(name), part).complete
    rest = dict(list(state.items())[int((1 - fraction) * len(state)) :])
    assert not plan_weights(on_meta(name), rest).complete


def test_part_of_a_network_is_no_network() -> None:
    layer = on_meta("resnet18").layer1.state_dict()
    assert not plan_weights(on_meta("resnet18"), {f"layer1.{n}": t for n, t in layer.items()}).complete
    block = on_meta("resnet18").layer1[0].state_dict()
    assert not plan_weights(on_meta("resnet18"), block).complete
    assert plan_weights(on_meta("resnet18"), block, target="layer1.1").complete


def test_two_equal_parts_of_the_model_are_not_guessed() -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))

    with pytest.raises(WeightsError, match="target='left' or target='right'"):
        load_weights(Twins(), nn.Sequential(nn.Linear(2, 2)).state_dict())
    load_weights(Twins(), nn.Sequential(nn.Linear(2, 2)).state_dict(), target="right")


def test_order_is_used_on_request_and_only_where_it_is_unique() -> None:
    def net(**names: nn.Module) -> nn.Module:
        model = nn.Module()
        for name, child in names.items():
            model.add_module(name, child)
        return model

    def layers(classes: int) -> tuple[nn.Module, ...]:
        return nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3), nn.Linear(5, classes)

    a, b, c, d = layers(2)
    source = net(first=a, norm=b, second=c, out=d)
    a, b, c, d = layers(7)
    model = net(conv=a, bn=b, deep=c, fc=d)
    with pytest.raises(WeightsError):
        load_weights(model, source.state_dict())
    report = load_weights(model, source.state_dict(), match="order")
    assert report.head == ("fc",)
    assert torch.equal(model.deep.weight, source.second.weight)
    model = net(conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4), deep=nn.Conv2d(4, 9, 3))
    with pytest.raises(WeightsError):
        load_weights(model, source.state_dict(), match="order")
    with pytest.raises(ValueError, match="match must be one of 'name', 'order'"):
        load_weights(model, source.state_dict(), match="ordr")  # type: ignore[arg-type]  # the wrong word is the test
