"""Every parameter in one named group, by stage and decay; layer-wise rates are real learning rates."""

from itertools import pairwise

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR

from lit_transfer import freeze, param_groups
from lit_transfer.stages import Stage


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, 2), nn.Conv2d(4, 8, 3, 2))
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


def rates(groups: list[dict]) -> dict[str, float]:
    return {group["name"].split(".")[0]: group["lr"] for group in groups}


def names(groups: list[dict], kind: str) -> set[str]:
    return {name for group in groups if group["name"].endswith(f".{kind}") for name, _ in group["params"]}


def test_every_parameter_is_in_exactly_one_group_frozen_ones_too() -> None:
    net = Net()
    freeze(net, "body")
    groups = param_groups(net, 0.1)
    assert sorted(name for g in groups for name, _ in g["params"]) == sorted(name for name, _ in net.named_parameters())
    assert len({g["name"] for g in groups}) == len(groups)
    assert groups[-1]["name"] == "head.no_decay"


def test_norms_biases_tables_tokens_and_what_the_model_names_have_no_decay() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pos_embed = nn.Parameter(torch.zeros(1, 5, 4))
            self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
            self.position_embedding = nn.Embedding(5, 4)
            self.relative_position_bias_table = nn.Parameter(torch.zeros(9, 2))
            self.composition = nn.Parameter(torch.zeros(3, 3))
            self.gamma = nn.Parameter(torch.zeros(4, 1, 1))
            self.scale = nn.Parameter(torch.zeros(4, 1, 1))
            self.linear = nn.Linear(4, 4)
            self.norm = nn.LayerNorm((4, 4))

        def no_weight_decay(self) -> set[str]:
            return {"scale"}

    net = nn.ModuleDict({"body": Parts(), "head": nn.Linear(4, 2)})
    assert names(param_groups(net, 0.1, no_decay="*.gamma", stages=stages_by_child(net)), "decay") == {
        "body.composition",
        "body.linear.weight",
        "head.weight",
    }


def stages_by_child(net: nn.Module) -> tuple[Stage, ...]:
    first = [name for name, _ in net.named_parameters()]
    return tuple(
        Stage(
            "head" if child == "head" else f"stage{i}",
            (child,),
            tuple(n for n in first if n.split(".")[0] == child),
            None,
        )
        for i, (child, _) in enumerate(net.named_children())
    )


def test_timm_vit_as_its_authors_exclude_it() -> None:
    net = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=2)
    groups = param_groups(net, 0.1)
    assert {"pos_embed", "cls_token"} <= names(groups, "no_decay")
    assert all(p.ndim > 1 for g in groups if g["weight_decay"] for _, p in g["params"])


def test_layer_decay_gives_real_rates_that_every_scheduler_scales_alike() -> None:
    groups = param_groups(Net(), 0.1, layer_decay=0.5)
    by_stage = list(rates(groups).values())
    assert by_stage == pytest.approx([0.1 * 0.5**d for d in reversed(range(len(by_stage)))])
    assert len(by_stage) > 2
    for build in (
        lambda o: CosineAnnealingLR(o, 10),
        lambda o: LambdaLR(o, lambda step: 0.9**step),
        lambda o: OneCycleLR(o, [g["lr"] for g in o.param_groups], total_steps=10),
    ):
        optimizer = AdamW(param_groups(Net(), 0.1, layer_decay=0.5))
        scheduler = build(optimizer)
        for _ in range(4):
            optimizer.step()
            scheduler.step()
        now = list(rates(optimizer.param_groups).values())
        assert [low / high for low, high in pairwise(now)] == pytest.approx([0.5] * (len(now) - 1))


def test_a_backbone_rate_of_zero_means_what_it_says() -> None:
    net = Net()
    before = net.body[0].weight.detach().clone()
    optimizer = AdamW(param_groups(net, 0.0, 0.1, head_lr=0.1))
    net(torch.randn(2, 3, 16, 16)).sum().backward()
    optimizer.step()
    assert torch.equal(net.body[0].weight, before)
    assert net.body[0].weight.grad is not None


def test_tied_parameters_are_in_one_group() -> None:
    net = Net()
    net.body[3].bias = net.head.weight
    groups = param_groups(net, 0.1, stages=stages_by_child(net))
    assert [id(p) for g in groups for _, p in g["params"]].count(id(net.head.weight)) == 1
    AdamW(groups)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"lr": -1}, "lr must"),
        ({"lr": 0.1, "weight_decay": float("inf")}, "weight_decay must"),
        ({"lr": 0.1, "head_lr": -0.1}, "head_lr must"),
        ({"lr": 0.1, "layer_decay": 1.5}, "layer_decay must"),
        ({"lr": 0.1, "no_decay": "hed"}, "Nearest: head"),
    ],
)
def test_a_value_out_of_range_names_its_argument(arguments: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        param_groups(Net(), **arguments)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.sampled_from(["linear", "norm", "drop"]), min_size=3, max_size=8), st.floats(0.1, 1.0))
def test_any_chain_of_layers_is_divided_without_rest(kinds: list[str], factor: float) -> None:
    layer = {"linear": lambda: nn.Linear(4, 4), "norm": lambda: nn.BatchNorm1d(4), "drop": nn.Dropout}
    net = nn.Sequential(nn.Linear(4, 4), *(layer[kind]() for kind in kinds), nn.Linear(4, 2))
    groups = param_groups(net, 1.0, layer_decay=factor, stages=stages_by_child(net))
    assert sorted(n for g in groups for n, _ in g["params"]) == sorted(n for n, _ in net.named_parameters())
    by_stage = list(rates(groups).values())
    assert by_stage == sorted(by_stage)
