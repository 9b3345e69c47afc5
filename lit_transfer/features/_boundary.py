"""The frozen front of a backbone: where it ends, and what crosses there in a run on a real batch."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from lit_transfer.stages import Stage, stages_of

__all__ = [
    "Boundary",
    "Dummy",
    "Outline",
    "check_still",
    "earlier",
    "find_boundary",
    "first_tensor",
    "frozen_state",
    "outline_of",
    "run_until",
]


@dataclass(frozen=True)
class Boundary:
    """A cut through a backbone, behind its frozen front.

    Attributes:
        unit: Dotted name of the module whose output crosses; "" for the backbone's own output.
        before: Dotted names of the units that are used before it.
        stages: Names of the frozen stages.
    """

    unit: str
    before: tuple[str, ...]
    stages: tuple[str, ...]

    def units(self, backbone: nn.Module) -> list[tuple[str, nn.Module]]:
        """Give names and modules of all that lies before the cut, the last one being the unit itself."""
        return [(name, backbone.get_submodule(name)) for name in (*self.before, self.unit)]


@dataclass(frozen=True)
class Outline:
    """What one run on a real batch shows of a boundary; shapes are without the batch dimension.

    Attributes:
        image: Shape of what the backbone takes.
        feature: Shape of what crosses.
        dtype: Its dtype.
        layout: Its dimensions, batch included, in the order in which they lie in memory, on which the last bits of
            what is computed from it depend: (0, 1, 2, 3), or (0, 2, 3, 1) for channels_last.
        skipped: For each unit before, the shape and dtype of what it gives, in the structure in which it gives it.
    """

    image: tuple[int, ...]
    feature: tuple[int, ...]
    dtype: torch.dtype
    layout: tuple[int, ...]
    skipped: Mapping[str, Any] = field(hash=False)

    @property
    def carried(self) -> tuple[int, ...]:
        """The shape in which a feature takes an image's place; never an image's own, so that the two are told apart."""
        return self.feature if self.feature != self.image else (1, *self.feature)

    def restored(self, carried: Tensor) -> Tensor:
        """Give a batch of features, as carried, the shape and layout in which it crossed."""
        feature = carried.reshape(carried.shape[0], *self.feature).permute(self.layout).contiguous()
        return feature.permute([self.layout.index(dimension) for dimension in range(feature.ndim)])


class _Reached(BaseException):
    """Ends a run at the point that was wanted; no Exception, so that no step catches it."""


def find_boundary(backbone: nn.Module) -> Boundary | None:
    """Find the cut behind the stages that are frozen from the first one on.

    Returns:
        None if the first stage trains, or there is nothing to train in any case.
    """
    parameters = dict(backbone.named_parameters())
    if not parameters:
        return None
    if not any(parameter.requires_grad for parameter in parameters.values()):
        return Boundary("", (), ("all",))
    frozen = []
    for stage in stages_of(backbone):
        if any(parameters[name].requires_grad for name in stage.parameters):
            break
        frozen.append(stage)
    return _behind(frozen)


def earlier(backbone: nn.Module, boundary: Boundary) -> list[Boundary]:
    """Give the cuts behind fewer stages than one has before it, the nearest first."""
    stages = list(stages_of(backbone))
    if boundary.unit:
        stages = stages[: len(boundary.stages) - 1]
    cuts = [_behind(stages[:count]) for count in range(len(stages), 0, -1)]
    return [cut for cut in cuts if cut is not None]


def _behind(stages: Sequence[Stage]) -> Boundary | None:
    units = [name for stage in stages for name in stage.modules]
    if not units or not any(stage.parameters for stage in stages):
        return None
    return Boundary(units[-1], tuple(units[:-1]), tuple(stage.name for stage in stages))


def frozen_state(backbone: nn.Module, boundary: Boundary) -> dict[str, Tensor]:
    """Give the parameters and buffers on which the feature depends, by name; what is used between units is among them.

    A buffer outside all stages may be used anywhere, so it counts too.
    """
    if not boundary.unit:
        return {**dict(backbone.named_parameters()), **dict(backbone.named_buffers())}
    stages = stages_of(backbone)
    behind = tuple(f"{name}." for stage in stages if stage.name not in boundary.stages for name in stage.modules)
    parameters = {name for stage in stages if stage.name in boundary.stages for name in stage.parameters}
    state = {name: p for name, p in backbone.named_parameters() if name in parameters}
    return state | {name: b for name, b in backbone.named_buffers() if not name.startswith(behind)}


def check_still(backbone: nn.Module, boundary: Boundary) -> None:
    """Refuse a front whose features change while it is frozen: by its mode, or by what else is in the batch.

    Raises:
        ValueError: A module of the front is in train mode and that matters, or normalises by the batch.
    """
    for unit, module in boundary.units(backbone):
        for name, part in module.named_modules(prefix=unit):
            shown = f"{name.strip('.') or 'the backbone'} ({type(part).__name__})"
            if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is None:
                raise ValueError(
                    f"{shown} keeps no running statistics: its features depend on what else is in the batch. Build it "
                    "with track_running_stats=True, or let its stage train."
                )
            if part.training and not _is_the_same_in_training(part):
                raise ValueError(
                    f"{shown} has no gradient but is in train mode, so that its features change from step to step. "
                    "Freeze it with FinetuningSchedule or lit_transfer.freeze, or call eval() on it."
                )


def _is_the_same_in_training(part: nn.Module) -> bool:
    torchs = type(part).__module__.startswith("torch.nn.modules")
    moving = (
        nn.modules.dropout._DropoutNd,
        nn.modules.batchnorm._NormBase,
        nn.RReLU,
        nn.MultiheadAttention,
        nn.RNNBase,
        nn.FractionalMaxPool2d,
        nn.FractionalMaxPool3d,
    )
    return torchs and not isinstance(part, moving)


def run_until(run: Callable[[], object], backbone: nn.Module, until: nn.Module | None) -> tuple[Tensor, Any]:
    """Run something that calls the backbone, and end it where enough is known.

    Args:
        run: Calls the backbone, at any depth.
        backbone: The backbone.
        until: The part of it after whose output the run ends; None to end it when the backbone is called.

    Returns:
        The first tensor that the backbone took, and what `until` gave (None if the run ended before).

    Raises:
        ValueError: The run ended without getting there.
    """
    taken: list[Tensor] = []
    given: list[Any] = []

    def before(_: nn.Module, args: Any, kwargs: Any) -> None:
        taken.append(first_tensor(args, kwargs))
        if until is None:
            raise _Reached

    def after(_: nn.Module, args: Any, output: Any) -> None:
        given.append(output)
        raise _Reached

    handles = [backbone.register_forward_pre_hook(before, with_kwargs=True)]
    if until is not None:
        handles.append(until.register_forward_hook(after))
    try:
        with contextlib.suppress(_Reached):
            run()
    finally:
        for handle in handles:
            handle.remove()
    if not taken or (until is not None and not given):
        what = "the backbone" if not taken else "the unit at the boundary"
        raise ValueError(f"{what} ({type(until if taken else backbone).__name__}) was not called.")
    return taken[0], given[0] if given else None


def first_tensor(args: Any, kwargs: Any) -> Tensor:
    """Return the first tensor among the arguments of a call, which for a backbone is the image."""
    found = next((value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)), None)
    if found is None:
        raise ValueError("the backbone was called without a tensor.")
    return found


def outline_of(run: Callable[[], object], backbone: nn.Module, boundary: Boundary) -> tuple[Outline, Tensor, Tensor]:
    """Run to the boundary once and note what crosses it.

    Args:
        run: Calls the backbone on a real batch, with gradients on.
        backbone: The backbone.
        boundary: The cut.

    Returns:
        What was seen, what the backbone took, and the feature.

    Raises:
        TypeError: What crosses is no single tensor.
        ValueError: It has no row for each sample, or something before it trains.
    """
    seen: dict[str, Any] = {}
    handles = [
        backbone.get_submodule(name).register_forward_hook(partial(_note, seen, name)) for name in boundary.before
    ]
    unit = backbone.get_submodule(boundary.unit)
    try:
        image, feature = run_until(run, backbone, unit)
    finally:
        for handle in handles:
            handle.remove()
    where = f"the output of {boundary.unit or 'the backbone'}"
    if not isinstance(feature, Tensor):
        raise TypeError(f"{where} is a {type(feature).__name__}: expected one tensor to cross the boundary.")
    if feature.ndim == 0 or feature.shape[0] != image.shape[0]:
        raise ValueError(
            f"{where} has shape {tuple(feature.shape)} for a batch of {image.shape[0]}: expected a row for each sample."
        )
    if feature.requires_grad:
        raise ValueError(f"{where} has a gradient: something that trains takes part in it.")
    skipped = {name: _skipped(name, seen[name], image.shape[0]) for name in boundary.before if name in seen}
    strides = feature.stride()
    layout = sorted(range(feature.ndim), key=lambda dimension: -strides[dimension])
    outline = Outline(tuple(image.shape[1:]), tuple(feature.shape[1:]), feature.dtype, tuple(layout), skipped)
    return outline, image, feature


def _note(seen: dict[str, Any], name: str, module: nn.Module, args: Any, output: Any) -> None:
    seen.setdefault(name, tree_map_only(Tensor, lambda t: torch.empty_like(t, device="meta"), output))


def _skipped(name: str, output: Any, samples: int) -> Any:
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor) and (leaf.ndim == 0 or leaf.shape[0] != samples):
            raise ValueError(
                f"{name} gives a tensor of shape {tuple(leaf.shape)} for a batch of {samples}: expected a row for each "
                "sample, so that it can be left out."
            )
    return tree_map_only(Tensor, lambda t: Dummy(tuple(t.shape[1:]), t.dtype), output)


@dataclass(frozen=True)
class Dummy:
    """Stands for a tensor that nothing needs; NaN, so that it shows wherever it is needed after all."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def like(self, feature: Tensor) -> Tensor:
        """Make one for as many samples as there are features; it takes no memory."""
        value = math.nan if self.dtype.is_floating_point or self.dtype.is_complex else 0
        return torch.full((), value, dtype=self.dtype, device=feature.device).expand(feature.shape[0], *self.shape)
