import math

import pytest
import torch
from torch import nn

from lit_transfer.modules._learning_rate import warmup_cosine


def factors(total: float, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.1)])
    scheduler = warmup_cosine(optimizer, total)
    seen = []
    for _ in range(steps):
        head, backbone = (group["lr"] for group in optimizer.param_groups)
        assert backbone == pytest.approx(0.1 * head)
        seen.append(head)
        optimizer.step()
        scheduler.step()
    return seen


def test_rises_to_one_and_falls_to_zero() -> None:
    seen = factors(100, 101)
    assert seen[0] == pytest.approx(1 / 11)
    assert seen[10] == pytest.approx(1)
    assert seen[55] == pytest.approx(0.5)
    assert seen[100] == pytest.approx(0, abs=1e-12)
    assert seen[:11] == sorted(seen[:11])
    assert seen[10:] == sorted(seen[10:], reverse=True)


def test_one_step_and_an_endless_run() -> None:
    assert all(math.isfinite(factor) and factor > 0 for factor in factors(1, 1))
    assert factors(math.inf, 5) == [1] * 5
