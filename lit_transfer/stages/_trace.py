"""From one run of a module to its stages, classifier and feature shape."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lit_transfer.stages._classifier import find_classifiers, named_classifier
from lit_transfer.stages._group import group_units
from lit_transfer.stages._record import Inputs, Record, Use, record_run
from lit_transfer.stages._stage import Stage, Trace
from lit_transfer.stages._units import Unit, open_along, open_dominant, top_units

__all__ = ["trace_stages"]


def trace_stages(
    module: nn.Module,
    input_size: int | tuple[int, int] = 224,
    *,
    in_channels: int = 3,
    inputs: Tensor | tuple[Any, ...] | Mapping[str, Any] | None = None,
    classifier: str | None = "auto",
) -> Trace:
    """Run a module once, without memory, and cut it into stages by what it uses when.

    The run is in eval mode, on tensors without data where the module allows it, else on one sample of zeros. The
    module, its hooks and flags, torch's grad mode and random state are afterwards what they were.

    Args:
        module: Any module; its parameters may be on any device, also on meta.
        input_size: Side of the images in pixels, or (height, width).
        in_channels: Channels of the images.
        inputs: What to run the module on instead of images: a tensor with a batch dimension, a tuple of positional or
            a dictionary of keyword arguments. The first tensor is taken as the input.
        classifier: `"auto"` for the last used Linear or 1x1 convolution, after which no parameter is used; None if the
            module has no classifier; or its dotted name.

    Returns:
        Stages that together hold each parameter exactly once, under upstream names; the classifier; feature shape.

    Raises:
        ValueError: The module does not run on this input, or the classifier is not one of its modules.
    """
    record = record_run(module, _as_call(inputs, input_size, in_channels))
    if classifier == "auto":
        classifiers = find_classifiers(module, record)
    else:
        classifiers = () if classifier is None else (named_classifier(module, record, classifier),)
    return build_trace(module, record, classifiers)


def _as_call(inputs: Any, input_size: int | tuple[int, int], in_channels: int) -> Inputs:
    if inputs is None:
        height, width = (input_size, input_size) if isinstance(input_size, int) else input_size
        # Two images: a module that squeezes its output would lose the batch dimension of one.
        return (torch.empty(2, in_channels, height, width, device="meta"),), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, list | tuple) else (inputs,)), {}


def build_trace(module: nn.Module, record: Record, classifiers: Sequence[str]) -> Trace:
    """Cut a recorded module into stages."""
    units = [u for u in open_along(top_units(module, record), classifiers) if u.name not in classifiers]
    after = record.calls[classifiers[0]].start if classifiers else None
    body = [unit for unit in units if after is None or unit.size or unit.start < after]
    groups = group_units(open_dominant(body, lambda some: len(group_units(some))))
    owners = _owners(module, record, groups, classifiers)
    stages = [_stage(index, group, owners) for index, group in enumerate(groups)]
    if not groups and 0 in owners.values():
        stages = [_stage(0, [], owners)]
    if classifiers:
        head = tuple(name for name, owner in owners.items() if owner == -1)
        shape = record.calls[classifiers[-1]].output_shape
        stages.append(Stage("head", tuple(classifiers), head, shape[1:] if shape else None))
    feature = record.calls[classifiers[0]].input_shape if classifiers else record.output_shape
    return Trace(
        tuple(stages),
        classifiers[0] if classifiers else None,
        (feature or ())[1:],
        tuple(name for name, _ in module.named_parameters() if name not in record.first_uses),
        _first_conv(module, record),
    )


def _stage(index: int, group: Sequence[Unit], owners: Mapping[str, int]) -> Stage:
    shapes = [unit.output_shape for unit in group if unit.matrices]
    return Stage(
        f"stage{index}" if index else "stem",
        tuple(unit.name for unit in group),
        tuple(name for name, owner in owners.items() if owner == index),
        shapes[-1] if shapes else None,
    )


def _owners(
    module: nn.Module, record: Record, groups: Sequence[Sequence[Unit]], classifiers: Sequence[str]
) -> dict[str, int]:
    """Give each parameter its stage: -1 for the head.

    A parameter inside a unit belongs to it. One of a module that was opened (class token, position table) belongs to
    the unit that was running when it was first used, else to the one that ended last; after the logits, to the head.
    One that is never used belongs where its neighbour in the order of registration belongs.
    """
    inside = {unit.name: index for index, group in enumerate(groups) for unit in group}
    inside |= dict.fromkeys(classifiers, -1)
    logits = min((record.calls[name].end for name in classifiers), default=math.inf)
    owners: dict[str, int | None] = {}
    for name, _ in module.named_parameters():
        parents = (name[:at] for at in range(len(name)) if name[at] == ".")
        owner = next((inside[parent] for parent in parents if parent in inside), None)
        if owner is None and (use := record.first_uses.get(name)):
            owner = -1 if use.time > logits else _user(use, inside, groups)
        owners[name] = owner
    return _beside_neighbours(owners)


def _user(use: Use, inside: Mapping[str, int], groups: Sequence[Sequence[Unit]]) -> int:
    """Return the group that was running at a use, or whose unit had ended last; the first one before that."""
    running = [inside[name] for name in use.inside if inside.get(name, -1) >= 0]
    ended = [(unit.end, index) for index, group in enumerate(groups) for unit in group if unit.end < use.time]
    return running[0] if running else max(ended, default=(0, 0))[1]


def _beside_neighbours(owners: dict[str, int | None]) -> dict[str, int]:
    placed = [owner for owner in owners.values() if owner is not None and owner >= 0]
    last = placed[0] if placed else 0
    result: dict[str, int] = {}
    for name, owner in owners.items():
        result[name] = last if owner is None else owner
        last = last if result[name] < 0 else result[name]
    return result


def _first_conv(module: nn.Module, record: Record) -> str | None:
    convs = [
        (call.start, name)
        for name, call in record.calls.items()
        if isinstance(module.get_submodule(name), nn.Conv1d | nn.Conv2d | nn.Conv3d)
    ]
    return min(convs, default=(0, None))[1]
