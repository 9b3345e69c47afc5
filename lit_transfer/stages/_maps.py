"""Which unit of each stage gives a feature map, and how its output becomes (N, C, H, W)."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lit_transfer.stages._record import Call, Record, first_tensor, record_run
from lit_transfer.stages._stage import Stage
from lit_transfer.stages._units import Unit, place_axes

__all__ = ["StageMap", "stage_maps"]

# Class, distillation and register tokens.
_MOST_PREFIX = 8
# By so many pixels a second run is larger; a multiple of every usual stride and of the windows of 7.
_LARGER = 448


@dataclass(frozen=True)
class StageMap:
    """Where a stage gives its feature map.

    Attributes:
        unit: Dotted name of the module whose output it is.
        channels: Of the map.
        stride: Pixels of the image for each pixel of the map, on a side.
        layout: Of the output: channels first, channels last, or tokens in the order of reading.
        prefix: Number of tokens (class, registers) before those of the map.
        overwritten: Whether the output is changed in place by what comes after it.
    """

    unit: str
    channels: int
    stride: int
    layout: str
    prefix: int = 0
    overwritten: bool = False

    def of(self, output: Any) -> Tensor:
        """Take the tensor out of what the unit gave, and keep it from what comes after it."""
        tensor = first_tensor(output)
        if tensor is None or tensor.ndim != (3 if self.layout == "tokens" else 4):
            got = type(output).__name__ if tensor is None else f"shape {tuple(tensor.shape)}"
            raise ValueError(f"{self.unit} gave {got}: expected {self.layout}, as when it was traced.")
        return tensor.clone() if self.overwritten else tensor

    def arranged(self, tensor: Tensor, height: int, width: int) -> Tensor:
        """Give (N, channels, H, W) for images of this height and width.

        Raises:
            ValueError: The tokens are not as many as places in such images.
        """
        if self.layout == "channels first":
            return tensor
        if self.layout == "channels last":
            return tensor.permute(0, 3, 1, 2)
        places = tensor.shape[1] - self.prefix
        for sides in itertools.product(_sides(height, self.stride), _sides(width, self.stride)):
            if math.prod(sides) == places:
                return tensor[:, self.prefix :].transpose(1, 2).reshape(len(tensor), -1, *sides)
        raise ValueError(
            f"{self.unit} gave {tensor.shape[1]} tokens for images of {height} x {width} pixels: expected "
            f"{self.prefix} and one for each {self.stride} x {self.stride} pixels."
        )


def stage_maps(module: nn.Module, stages: Iterable[Stage], input_size: int, in_channels: int) -> dict[str, StageMap]:
    """Find the feature map of each stage from two runs without memory, at `input_size` and at a larger one.

    The map is what the last unit with a weight matrix gives, or the normalisation and activation after it. The axes
    that grow with the image are the places, and by how much they grow is the stride exactly, whatever a convolution
    cuts off at the border. A module that takes one size only is judged by that one.

    Args:
        module: Takes images (N, C, H, W).
        stages: Of the module.
        input_size: Side in pixels of images that it takes.
        in_channels: Channels of the images.

    Returns:
        The maps by name of stage, in the order of stages; those that give none (vectors, a map whose size does not
        follow that of the image, tokens in an order of their own) are left out.

    Raises:
        ValueError: The module does not run on images of that size.
    """
    by = 2 * input_size if input_size % 32 == 0 else _LARGER
    runs = {input_size: record_run(module, _images(input_size, in_channels))}
    with contextlib.suppress(ValueError):
        runs[input_size + by] = record_run(module, _images(input_size + by, in_channels), for_real=False)
    found = {stage.name: _map_of(module, stage, runs) for stage in stages if stage.name != "head"}
    shuffled = _shuffles_tokens(module)
    return {name: m for name, m in found.items() if m is not None and not (shuffled and m.layout == "tokens")}


def _shuffles_tokens(module: nn.Module) -> bool:
    """Whether tokens are put in an order in which pooling is a reshape, which no shape tells: Hiera does."""
    return any(name.startswith("unroll") for m in module.modules() for name in (*m._modules, *vars(m)))


def _images(size: int, channels: int) -> Any:
    return (torch.empty(2, channels, size, size, device="meta"),), {}


@dataclass(frozen=True)
class _Grid:
    """A square of places in an output."""

    side: int
    channels: int
    layout: str
    prefix: int = 0


def _map_of(module: nn.Module, stage: Stage, runs: dict[int, Record]) -> StageMap | None:
    _, record = max(runs.items())  # the larger images, of which a late stage has more than a single place left
    units = [Unit(name, module.get_submodule(name), record) for name in stage.modules]
    grids = [_grid_of(unit.name, record, runs) for unit in units]
    at = max((i for i, u in enumerate(units) if u.matrices and not u.is_pooled and grids[i]), default=None)
    if at is None:
        return None
    while at + 1 < len(units) and _same_places(grids[at], grids[at + 1]):
        at += 1
    grid, name = grids[at], units[at].name
    stride = _stride(name, runs)
    if grid is None or not stride:
        return None
    return StageMap(name, grid.channels, stride, grid.layout, grid.prefix, record.calls[name].overwritten)


def _same_places(one: _Grid | None, other: _Grid | None) -> bool:
    return one is not None and other is not None and (one.side, one.channels) == (other.side, other.channels)


def _stride(name: str, runs: dict[int, Record]) -> int:
    """Pixels for each place on a side; 0 where that is unknown or does not follow the size of the image."""
    sides = [(size, grid.side) for size, record in sorted(runs.items()) if (grid := _grid_of(name, record, runs))]
    if len(sides) < len(runs):
        return 0
    (size, side), *larger = sides
    if not larger:
        return round(size / side)
    more = larger[0][1] - side
    return round((larger[0][0] - size) / more) if more > 0 else 0


def _grid_of(name: str, record: Record, runs: dict[int, Record]) -> _Grid | None:
    """Read the output of a module as places and channels, of square images."""
    call = record.calls.get(name)
    if call is None or call.output_shape is None or call.output_shape[0] != record.input_shape[0]:
        return None
    shape = call.output_shape[1:]
    if len(shape) not in (2, 3):
        return None
    if len(shape) == 3:
        axes = _axes_of(name, shape, record, runs)
        if shape[axes[0]] != shape[axes[1]]:
            return None
        last = 2 not in axes
        return _Grid(shape[axes[0]], shape[2 if last else 0], "channels last" if last else "channels first")
    side = _side_of_tokens(shape[0], call, record)
    return _Grid(side, shape[1], "tokens", shape[0] - side**2) if side else None


def _axes_of(name: str, shape: Sequence[int], record: Record, runs: dict[int, Record]) -> Sequence[int]:
    """Which axes are places; where there are as many channels as places on a side, a run of other images tells."""
    for other in runs.values() if len(set(shape)) == 1 else ():
        call = other.calls.get(name)
        if call is not None and call.output_shape is not None and len(set(call.output_shape[1:])) > 1:
            return place_axes(call.output_shape[1:], other.input_shape)
    return place_axes(shape, record.input_shape)


def _side_of_tokens(tokens: int, call: Call, record: Record) -> int | None:
    """Find the square that tokens are, without those before it.

    A map that came before it in the run (that of the convolution which made the patches) tells the side, else the
    number itself, with a class token or without.
    """
    shapes = [c.output_shape for c in record.calls.values() if c.output_shape and c.start < call.end]
    sides = {shape[2] for shape in shapes if len(shape) == 4 and shape[2] == shape[3]}
    likely = [side for side in sides if 0 <= tokens - side**2 <= _MOST_PREFIX and 4 * side**2 >= tokens]
    if likely:
        return max(likely)
    return next((side for prefix in (0, 1) if (side := math.isqrt(tokens - prefix)) ** 2 == tokens - prefix), None)


def _sides(pixels: int, stride: int) -> Sequence[int]:
    """How many places there may be on a side, whether a remainder is cut off or padded."""
    return sorted({pixels // stride, math.ceil(pixels / stride)})
