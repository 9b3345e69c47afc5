"""L2-SP: decay towards the weights that training started from, instead of towards zero."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["add_l2_sp", "l2_sp"]


def l2_sp(module: nn.Module, start: Mapping[str, Tensor]) -> Tensor:
    """Return half the squared distance between parameters and their starting point, a scalar.

    Source: Li, Grandvalet and Davoine, Explicit Inductive Bias for Transfer Learning with Convolutional Networks,
    arXiv:1802.01483, equation 2, without the factor alpha and without the second term, which is the usual weight
    decay of what is new (the head).

    Args:
        module: The module that trains.
        start: Names of parameters and the values that they started from, of the same shapes.
    """
    named = dict(module.named_parameters())
    return sum(((named[name] - value).square().sum() / 2 for name, value in start.items()), torch.zeros(()))


@torch.no_grad()
def add_l2_sp(module: nn.Module, start: Mapping[str, Tensor], alpha: float) -> None:
    """Add the gradient of `alpha * l2_sp(module, start)` to the gradients that are there; frozen parameters have none.

    Args:
        module: The module whose backward pass has run.
        start: Names of parameters and the values that they started from.
        alpha: Strength of the pull.
    """
    named = dict(module.named_parameters())
    for name, value in start.items():
        gradient = named[name].grad
        if gradient is not None:
            gradient.add_(named[name] - value, alpha=alpha)
