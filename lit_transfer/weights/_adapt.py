"""Tensors of another shape: which adaptation fits, why, and how it is computed."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from lit_transfer.weights._lazy import LazyTensor

Shape = tuple[int, ...]
_MAX_TOKENS = 5  # class token, distillation token, four registers: never more than five together in use


@dataclass(frozen=True)
class Adaptation:
    """A change of shape, with its reason in words.

    Attributes:
        reason: Why, in words.
        run: Computes the new tensor.
        drops_class_position: Whether a position table loses the class token's position, which then belongs into that
            token.
    """

    reason: str
    run: Callable[[Tensor], Tensor]
    drops_class_position: bool = False


def adaptation(name: str, module: nn.Module, theirs: Shape, ours: Shape, *, first: bool) -> Adaptation | None:
    """The adaptation that makes a tensor of shape `theirs` fit `ours`; None if there is none.

    Args:
        name: Name of the tensor in the model.
        module: The module that holds it.
        theirs: Shape in the file.
        ours: Shape in the model.
        first: Whether this is the model's first convolution.
    """
    if [size for size in theirs if size != 1] == [size for size in ours if size != 1]:
        # A linear layer and a 1x1 convolution, or a token with and without its batch dimension.
        return Adaptation(f"{_words(theirs)} read as {_words(ours)}", lambda tensor: tensor.reshape(ours))
    if first and _differs_only_at(1, theirs, ours) and isinstance(module, nn.modules.conv._ConvNd):
        return _input_channels(theirs[1], ours[1]) if module.groups == 1 else None
    leaf = name.rpartition(".")[2]
    if leaf == "relative_position_bias_table" and len(theirs) == len(ours) == 2 and theirs[1] == ours[1]:
        return _relative_table(theirs, ours)
    if "pos" in leaf and len(theirs) == len(ours) == 3 and theirs[::2] == ours[::2] and theirs[0] == 1:
        return _position_table(theirs, ours)
    return None


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


def adapt_position_table(table: Tensor, positions: int, tokens: int) -> Tensor:
    """A table of absolute positions for another square grid, by bicubic interpolation; extra tokens are kept.

    Args:
        table: Shape (1, tokens + old grid cells, width).
        positions: New number of positions, extra tokens included.
        tokens: Number of extra tokens at the beginning.

    Returns:
        Shape (1, positions, width), in the table's dtype.
    """
    side, new = math.isqrt(table.shape[1] - tokens), math.isqrt(positions - tokens)
    grid = table[:, tokens:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = _resized(grid, new).permute(0, 2, 3, 1).reshape(1, new * new, -1)
    return torch.cat([table[:, :tokens], grid.to(table.dtype)], 1)


def adapt_relative_table(table: Tensor, entries: int) -> Tensor:
    """A Swin table of relative positions for another window, by bicubic interpolation.

    Args:
        table: Shape ((2w - 1)^2, heads) for a window of w.
        entries: New number of entries, (2v - 1)^2.

    Returns:
        Shape (entries, heads), in the table's dtype.
    """
    side, new = math.isqrt(table.shape[0]), math.isqrt(entries)
    grid = table.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    return _resized(grid, new).permute(0, 2, 3, 1).reshape(entries, -1).to(table.dtype)


def rows_by_class(theirs: Sequence[str], ours: Sequence[str]) -> list[int] | None:
    """For each class of the model its row in the file; None unless each is there, once."""
    rows = {name: row for row, name in enumerate(theirs)}
    if len(rows) != len(theirs) or not all(name in rows for name in ours):
        return None
    return [rows[name] for name in ours]


def class_rows(rows: list[int]) -> Adaptation:
    """A classifier's rows chosen by the names of the classes."""
    return Adaptation(f"{len(rows)} rows chosen by class names", lambda tensor: tensor[torch.tensor(rows)])


def _input_channels(old: int, new: int) -> Adaptation:
    how = "summed" if new == 1 else "repeated and scaled"
    return Adaptation(f"{old} input channels {how} to {new}", lambda weight: adapt_input_channels(weight, new))


def _position_table(theirs: Shape, ours: Shape) -> Adaptation | None:
    """The fewest extra tokens with which both tables are squares."""
    for tokens in range(_MAX_TOKENS + 1):
        old, new = theirs[1] - tokens, ours[1] - tokens
        if old > 0 and new > 0 and _is_square(old) and _is_square(new):
            a, b = math.isqrt(old), math.isqrt(new)
            reason = f"positions interpolated from {a}x{a} to {b}x{b}, {tokens} extra tokens kept"
            return Adaptation(reason, partial(adapt_position_table, positions=ours[1], tokens=tokens))
    if _is_square(theirs[1] - 1) and _is_square(ours[1]):
        return Adaptation(
            "the class token's position left out",
            lambda table: adapt_position_table(table[:, 1:], ours[1], 0),
            drops_class_position=True,
        )
    return None


def with_class_position(table: LazyTensor) -> Adaptation:
    """The class token of a model that adds no position to it (timm's `no_embed_class`); shape (1, 1, width)."""
    return Adaptation("its position added", lambda token: token + table.read()[:, :1].to(token.dtype))


def _relative_table(theirs: Shape, ours: Shape) -> Adaptation | None:
    if not _is_square(theirs[0]) or not _is_square(ours[0]):
        return None
    old, new = (math.isqrt(theirs[0]) + 1) // 2, (math.isqrt(ours[0]) + 1) // 2
    reason = f"relative positions interpolated from window {old} to {new}"
    return Adaptation(reason, lambda table: adapt_relative_table(table, ours[0]))


def _resized(grid: Tensor, side: int) -> Tensor:
    return nn.functional.interpolate(grid, size=(side, side), mode="bicubic", antialias=True, align_corners=False)


def _is_square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number


def _differs_only_at(axis: int, theirs: Shape, ours: Shape) -> bool:
    return len(theirs) == len(ours) and all(
        a == b for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if i != axis
    )


def _words(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "scalar"
