"""The stages of any module, whoever wrote it."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lit_transfer.stages._classifier import find_classifiers
from lit_transfer.stages._record import Call, Record, Use
from lit_transfer.stages._stage import Stage, Trace
from lit_transfer.stages._trace import build_trace, trace_stages

__all__ = ["stages_of"]

# What image models are made for, the commonest first; the small ones for CIFAR and digits.
_IMAGE_SIZES = (224, 32, 64, 28, 96, 128, 256, 299, 384, 512)


def stages_of(module: nn.Module, *, input_size: int | None = None) -> tuple[Stage, ...]:
    """Return the stages of any module: known ones, or traced.

    A module that has a tuple of `Stage` as its `stages`, or a `Trace` as its `trace`, is taken at its word. Any other
    is run on its `example_input_array`, as LightningModules have it, or else on images of usual sizes. Where its
    forward cannot be run, its child with most parameters is traced, and everything beside that child is the head.

    Args:
        module: Any module, LightningModules included.
        input_size: Side of the images in pixels, if it is known.

    Returns:
        Stages from input to output that together hold each parameter of the module exactly once.

    Warns:
        UserWarning: Nothing of it could be run; its stages follow the order in which its modules are registered.
    """
    known = getattr(module, "stages", None)
    if isinstance(known, tuple) and known and all(isinstance(stage, Stage) for stage in known):
        return known
    if isinstance(trace := getattr(module, "trace", None), Trace):
        return trace.stages
    try:
        return _trace_any(module, input_size).stages
    except ValueError as error:
        reason = error
    children = [(child, sum(p.numel() for p in child.parameters()), name) for name, child in module.named_children()]
    main, size, name = max(children, key=lambda item: item[1], default=(module, 0, ""))
    if 2 * size > sum(parameter.numel() for parameter in module.parameters()):
        return _around(module, name, stages_of(main, input_size=input_size))
    warnings.warn(
        f"The stages of {type(module).__name__} follow the order in which its modules are registered, for it could not "
        f"be run: {reason} Set its example_input_array to an input that it takes.",
        stacklevel=2,
    )
    return _as_registered(module).stages


def _trace_any(module: nn.Module, input_size: int | None) -> Trace:
    """Trace with the first input that works.

    Raises:
        ValueError: None does; the reason is that of the first.
    """
    reasons: list[ValueError] = []
    for inputs in _inputs(module, input_size):
        result = _trace_or_reason(module, inputs)
        if isinstance(result, Trace):
            return result
        reasons.append(result)
        if isinstance(result.__cause__, NotImplementedError):  # it has no forward
            break
    raise reasons[0]


def _trace_or_reason(module: nn.Module, inputs: Any) -> Trace | ValueError:
    try:
        return trace_stages(module, inputs=inputs)
    except ValueError as error:
        return error


def _inputs(module: nn.Module, input_size: int | None) -> Iterator[Any]:
    """Yield inputs that the module may take, the likeliest first."""
    if (example := getattr(module, "example_input_array", None)) is not None:
        yield example
        return
    layers = (m for m in module.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear))
    first = next(layers, None)
    if isinstance(first, nn.Linear):
        yield torch.empty(2, first.in_features, device="meta")
    channels = 3 if first is None or isinstance(first, nn.Linear) else first.in_channels
    axes = 1 if isinstance(first, nn.Conv1d) else 3 if isinstance(first, nn.Conv3d) else 2
    for size in (input_size,) if input_size else _IMAGE_SIZES:
        yield torch.empty(2, channels, *[size] * axes, device="meta")


def _around(module: nn.Module, child: str, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """Put the stages of a child into a module: under its names, and all that the child lacks as the head."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    inner = dict(module.get_submodule(child).named_parameters())
    placed: list[Stage] = []
    for stage in stages:
        own = tuple(names.pop(id(inner[name])) for name in stage.parameters)
        modules = tuple(f"{child}.{name}" for name in stage.modules)
        placed.append(Stage(stage.name, modules, own, stage.output_shape))
    if not names:
        return tuple(placed)
    if placed[-1].name == "head":  # another one comes after it
        placed[-1] = replace(placed[-1], name=f"stage{len(placed) - 1}" if len(placed) > 1 else "stem")
    rest = set(names.values())
    beside = tuple(
        name for name, m in module.named_children() if name != child and next(m.parameters(), None) is not None
    )
    return (*placed, Stage("head", beside, tuple(n for n, _ in module.named_parameters() if n in rest), None))


def _as_registered(module: nn.Module) -> Trace:
    """Make a trace as if each module used its parameters and then its children, in the order of registration."""
    record, clock = Record(), itertools.count()
    first_names = {name for name, _ in module.named_parameters()}

    def visit(parent: nn.Module, inside: tuple[str, ...], path: str) -> None:
        for name, _ in parent.named_parameters(prefix=path, recurse=False):
            if name in first_names:
                record.first_uses[name] = record.last_uses[name] = Use(next(clock), inside)
        for name, child in parent.named_children():
            full = f"{path}.{name}".lstrip(".")
            if isinstance(child, nn.ModuleList | nn.ModuleDict):  # are never called
                visit(child, inside, full)
                continue
            record.calls[full] = call = Call(next(clock), -1)
            visit(child, (*inside, full), full)
            call.end = next(clock)

    visit(module, (), "")
    return build_trace(module, record, find_classifiers(module, record))
