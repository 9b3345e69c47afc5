"""Norms of gradients, weights and updates, against what is computed by hand."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lit_transfer import freeze
from lit_transfer.stage_norms import StageNorm, StepMeasure, columns, plot_norms
from lit_transfer.stages import Stage


def stage(name: str, *parameters: str) -> Stage:
    return Stage(name, (), parameters, None)


def measured(net: nn.Module, stages: list[Stage], lr: float = 0.1, scale: float = 1.0) -> dict[str, StageNorm]:
    optimizer = torch.optim.SGD(net.parameters(), lr)
    measure = StepMeasure()
    measure.begin(optimizer, scale)
    optimizer.step()
    return measure.end(net, stages)


def flat(*tensors: torch.Tensor | None) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors if tensor is not None])


def test_the_norms_are_those_of_all_elements_together() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    net(torch.randn(5, 3, dtype=torch.float64)).square().sum().backward()
    weight, gradient = flat(*net[0].parameters()).norm(), flat(*(p.grad for p in net[0].parameters())).norm()
    stages = [stage("stem", "0.weight", "0.bias"), stage("head", "1.weight", "1.bias")]
    found = measured(net, stages, lr=0.1, scale=4.0)
    assert list(found) == ["stem", "head"]
    assert found["stem"].gradient == pytest.approx(gradient.item() / 4, rel=1e-12)
    assert found["stem"].weight == pytest.approx(weight.item(), rel=1e-12)
    assert found["stem"].update == pytest.approx((0.1 * gradient / weight).item(), rel=1e-9)


def test_what_is_frozen_is_left_out_and_what_is_shared_is_counted_once() -> None:
    net = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False), "c": nn.Linear(2, 2)})
    net["b"].weight = net["a"].weight
    freeze(net, "c")
    nn.init.ones_(net["a"].weight)
    (net["a"].weight.sum() + net["b"].weight.sum()).backward()
    found = measured(net, [stage("s1", "a.weight", "a.weight"), stage("s2", "a.weight"), stage("s3", "c.weight")])
    assert found == {"s1": StageNorm(4.0, 2.0, pytest.approx(0.2))}


def test_a_stage_of_zeros_has_no_ratio_and_half_precision_does_not_overflow() -> None:
    net = nn.Linear(256, 256, bias=True, dtype=torch.float16)
    nn.init.zeros_(net.bias)
    nn.init.constant_(net.weight, 300.0)
    net.weight.grad = torch.full_like(net.weight, 300.0)
    net.bias.grad = torch.ones_like(net.bias)
    found = measured(net, [stage("w", "weight"), stage("b", "bias")], lr=0.0)
    large = pytest.approx(76800.0, rel=1e-3)  # float16 ends at 65504
    assert found == {"w": StageNorm(large, large, 0.0), "b": StageNorm(16.0, 0.0, None)}
    assert columns(found) == {
        "grad_norm/w": large,
        "grad_norm/b": 16.0,
        "weight_norm/w": large,
        "weight_norm/b": 0.0,
        "update_ratio/w": 0.0,
    }


def test_sparse_gradients() -> None:
    net = nn.Embedding(3, 2, sparse=True)
    (net(torch.tensor([1, 1])).sum() * 3).backward()
    assert measured(net, [stage("all", "weight")])["all"].gradient == pytest.approx((6**2 * 2) ** 0.5)


def test_several_looks_before_one_end_keep_the_first_weights() -> None:
    net = nn.Linear(1, 1, bias=False)
    nn.init.ones_(net.weight)
    optimizer, measure = torch.optim.SGD(net.parameters(), 0.25), StepMeasure()
    for _ in range(2):
        net.weight.grad = torch.ones_like(net.weight)
        measure.begin(optimizer)
        optimizer.step()
    assert measure.end(net, [stage("all", "weight")])["all"].update == 0.5
    assert measure.end(net, [stage("all", "weight")]) == {}


def test_a_picture_with_a_stage_that_is_frozen_for_some_time(tmp_path: Path) -> None:
    some = {"stem": StageNorm(0.1, 5.0, None), "head": StageNorm(1.0, 2.0, 1e-3)}
    figure = plot_norms({0: {"head": some["head"]}, 50: some, 100: some})
    figure.savefig(tmp_path / "norms.png")
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["head", "stem"]
    assert [len(axes.lines) for axes in figure.axes] == [2, 2, 3]
