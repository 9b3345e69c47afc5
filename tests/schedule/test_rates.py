"""A phase's factors hold inside a step and nowhere else, however the optimizer is called."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import SGD

from lit_transfer.schedule import plan_schedule, stage_factors, while_stepping


class Inner(SGD):
    """Notes the rate with which it steps, in a subclass that calls its parent's step."""

    def __init__(self, group: dict[str, Any]) -> None:
        super().__init__([group])
        self.rates: list[float] = []

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = super().step(closure)
        self.rates.append(self.param_groups[0]["lr"])
        return loss


@pytest.fixture
def optimizer() -> Inner:
    weight = torch.nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    SGD([weight])  # from here on the parent's step runs the hooks too
    made = Inner({"params": [weight], "lr": 0.1, "stage": "head"})
    while_stepping(made, lambda: {"head": 3.0})
    return made


def fails() -> None:
    raise RuntimeError("broken")


@pytest.mark.parametrize(
    "step",
    [lambda o: o.step(), lambda o: o.step(lambda: 1.0), lambda o: o.step(closure=lambda: 1.0)],
    ids=["no closure", "closure", "closure by name"],
)
def test_factors_hold_within_the_step_only_and_after_a_failure_too(step: Any, optimizer: Inner) -> None:
    with pytest.raises(RuntimeError, match="broken"):
        optimizer.step(fails)
    assert optimizer.param_groups[0]["lr"] == 0.1
    for _ in range(2):
        step(optimizer)
        assert optimizer.param_groups[0]["lr"] == 0.1
    assert optimizer.rates == pytest.approx([0.3, 0.3])
    assert optimizer.param_groups[0]["params"][0].item() == pytest.approx(1 - 2 * 0.3)


def test_the_closure_sees_the_rates_of_the_scheduler(optimizer: Inner) -> None:
    seen = []
    optimizer.step(lambda: seen.append(optimizer.param_groups[0]["lr"]))
    assert seen == [0.1]


def test_lr_is_the_heads_and_layer_decay_counts_from_the_last_stage() -> None:
    rates = {"stem": 0.01, "stage1": 0.01, "stage2": 0.01, "head": 0.1}
    (phase,) = plan_schedule([{"train": "all", "lr": 0.2, "layer_decay": 0.5}], list(rates))
    factors = stage_factors(rates, phase, warm=0.5)
    assert {stage: rates[stage] * factor for stage, factor in factors.items()} == pytest.approx(
        {"stem": 0.0025, "stage1": 0.005, "stage2": 0.01, "head": 0.1}
    )
