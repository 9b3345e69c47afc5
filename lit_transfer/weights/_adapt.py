"""Tensors of another shape: which adaptation fits, why, and how it is computed."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Adaptation:
    """A change of shape, with its reason in words."""

    reason: str
    run: Callable[[Tensor], Tensor]


def adaptation(module: nn.Module, theirs: tuple[int, ...], ours: tuple[int, ...], *, first: bool) -> Adaptation | None:
    """The adaptation that makes a tensor of shape `theirs` fit `ours`; None if there is none.

    Args:
        module: The module that holds the tensor.
        theirs: Shape in the file.
        ours: Shape in the model.
        first: Whether this is the model's first convolution.
    """
    if first and _differs_only_at(1, theirs, ours) and isinstance(module, nn.modules.conv._ConvNd):
        return _input_channels(theirs[1], ours[1]) if module.groups == 1 else None
    if tuple(size for size in theirs if size != 1) == tuple(size for size in ours if size != 1):
        return Adaptation(f"{_words(theirs)} read as {_words(ours)}", lambda tensor: tensor.reshape(ours))
    return None


def _words(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _differs_only_at(axis: int, theirs: tuple[int, ...], ours: tuple[int, ...]) -> bool:
    return len(theirs) == len(ours) and all(
        a == b for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if i != axis
    )


def adapt_input_channels(weight: Tensor, channels: int) -> Tensor:
    """A convolution's weight for another number of input channels, which keeps the size of its answers.

    One channel gets the sum over the old ones: a grey picture then gives what it gave as three equal channels. Else
    the old channels are repeated in order, and scaled by old over new.

    Args:
        weight: Shape (out, in, ...).
        channels: The new number of input channels.

    Returns:
        Shape (out, channels, ...), in the weight's dtype; the sum is taken in float32.
    """
    old = weight.shape[1]
    wide = weight.float()
    if channels == 1:
        return wide.sum(1, keepdim=True).to(weight.dtype)
    order = torch.arange(channels, device=weight.device) % old
    return (wide[:, order] * (old / channels)).to(weight.dtype)


def _input_channels(old: int, new: int) -> Adaptation:
    how = "summed" if new == 1 else "repeated and scaled"
    return Adaptation(f"{old} input channels {how} to {new}", lambda weight: adapt_input_channels(weight, new))
