"""The gradient that is added is that of the penalty, and nothing is added to what is frozen."""

import torch
from torch import nn

from lit_transfer import freeze
from lit_transfer.l2_sp import add_l2_sp, l2_sp


def test_the_added_gradient_is_autograds_and_frozen_parameters_get_none() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)).double()
    start = {name: torch.randn_like(p) for name, p in net.named_parameters()}
    (0.3 * l2_sp(net, start)).backward()
    expected = [p.grad.clone() for p in net.parameters()]
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    freeze(net, "0")
    add_l2_sp(net, start, 0.3)
    assert [p.grad is None for p in net.parameters()] == [True, True, False, False]
    for p, gradient in zip(net[1].parameters(), expected[2:], strict=True):
        torch.testing.assert_close(p.grad, 1 + gradient, rtol=0, atol=1e-15)
