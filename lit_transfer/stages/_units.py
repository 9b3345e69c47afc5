"""The units of a module: its children in the order of use, opened where most of the module lies in one of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from lit_transfer.stages._record import Record

__all__ = ["Unit", "open_along", "open_dominant", "place_axes", "top_units"]


@dataclass(frozen=True)
class Unit:
    """A child, grandchild, ... of the traced module that is taken as a whole."""

    name: str
    module: nn.Module
    record: Record

    @cached_property
    def size(self) -> int:
        """Number of values in its parameters."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    @cached_property
    def matrices(self) -> int:
        """Number of its weight matrices: parameters with two dimensions or more, unlike scales and shifts."""
        return sum(sum(side > 1 for side in parameter.shape) >= 2 for parameter in self.module.parameters())

    @cached_property
    def start(self) -> int:
        """When it was used first: called, or one of its parameters read by a parent (as in attention)."""
        if call := self.record.calls.get(self.name):
            return call.start
        return min(use.time for name, use in self.record.first_uses.items() if _is_in(name, self.name))

    @property
    def end(self) -> int:
        """When its first call ended."""
        call = self.record.calls.get(self.name)
        return call.end if call else self.start

    @cached_property
    def is_sequence(self) -> bool:
        """Whether its children follow each other.

        They do not where two of them take the same tensor (branches of a sum), nor where pixels come after a single
        place (a gate from pooled features, as in squeeze and excitation). It may return them beside what it pooled.
        """
        calls = [self.record.calls.get(child.name) for child in self.children if child.size]
        taken = [call.input_id for call in calls if call and call.input_id is not None]
        given = {self._output_id(child.name) for child in self.children} - {None}
        whole = () if self._output_id(self.name) in given else (self,)
        places = [child.positions for child in (*self.children, *whole) if child.positions is not None]
        gated = 1 in places and any(count > 1 for count in places[places.index(1) :])
        return len(taken) == len(set(taken)) and not gated

    def _output_id(self, name: str) -> int | None:
        call = self.record.calls.get(name)
        return call.output_id if call else None

    @property
    def output_shape(self) -> tuple[int, ...] | None:
        """Shape of its first output tensor without the batch dimension."""
        call = self.record.calls.get(self.name)
        return call.output_shape[1:] if call and call.output_shape else None

    @property
    def positions(self) -> int | None:
        """At how many places its output holds features: pixels or tokens."""
        call = self.record.calls.get(self.name)
        return _count_places(call.output_shape, self.record.input_shape) if call else None

    @property
    def is_pooled(self) -> bool:
        """True if what it takes is not spread over pixels or tokens any more, unlike the module's input."""
        call, whole = self.record.calls.get(self.name), self.record.input_shape
        spread = _count_places(whole, whole) != 1
        return spread and call is not None and _count_places(call.input_shape, whole) == 1

    @cached_property
    def children(self) -> tuple[Unit, ...]:
        """The units inside it."""
        return top_units(self.module, self.record, f"{self.name}.")


def _count_places(shape: tuple[int, ...] | None, inputs: tuple[int, ...]) -> int | None:
    if shape is None or len(shape) > max(3, len(inputs)):  # windows or groups of channels besides
        return None
    return math.prod(shape[1:][axis] for axis in place_axes(shape[1:], inputs))


def place_axes(shape: Sequence[int], inputs: Sequence[int] = (1, 3, 1, 1)) -> Sequence[int]:
    """Axes that are places and not channels in a shape without batch dimension.

    Args:
        shape: Of an output, without its batch dimension.
        inputs: Shape of the input with its batch dimension; square images by default.
    """
    if len(shape) <= 1:
        return ()
    if len(shape) == 2:  # tokens (T, C), unless the input itself is a signal (N, C, L)
        return (1,) if len(inputs) == 3 else (0,)
    if len(shape) == 3 and len(inputs) == 4:
        # Channels come last in some transformers: the pair of axes that is as wide and high as the image is the places.
        image = math.log(inputs[2] / inputs[3])
        first, last = (abs(math.log(shape[a] / shape[b]) - image) for a, b in ((1, 2), (0, 1)))
        return (0, 1) if last < first else (1, 2)
    return range(1, len(shape))


def _is_in(name: str, parent: str) -> bool:
    return name == parent or name.startswith(f"{parent}.")


def top_units(module: nn.Module, record: Record, prefix: str = "") -> tuple[Unit, ...]:
    """Children of a module in the order of their first use.

    A child that is never called itself is looked through where its own children are called (ModuleList, ModuleDict).
    Children that are not used at all are left out.
    """
    units: list[Unit] = []
    for name, child in module.named_children():
        unit = Unit(prefix + name, child, record)
        if unit.name in record.calls:
            units.append(unit)
        elif any(_is_in(called, unit.name) for called in record.calls):
            units += unit.children
        elif any(_is_in(used, unit.name) for used in record.first_uses):
            units.append(unit)
    return tuple(sorted(units, key=lambda unit: unit.start))


def open_along(units: Sequence[Unit], names: Sequence[str]) -> list[Unit]:
    """Open each unit that holds one of the named modules, until those modules are units themselves."""
    opened: list[Unit] = []
    for unit in units:
        if any(name.startswith(f"{unit.name}.") for name in names):
            opened += open_along(unit.children, names)
        else:
            opened.append(unit)
    return opened


def open_dominant(units: Sequence[Unit], count_stages: Callable[[Sequence[Unit]], int]) -> list[Unit]:
    """Open the unit that holds most of the parameters, and again, as long as that gives more stages.

    A wrapper around a backbone, or a single `features`, is opened; a residual block is not, and neither is a stage
    that is merely the largest.
    """
    units = list(units)
    while (big := _dominant(units)) and (finer := _opened(units, big, count_stages)):
        units = finer
    return units


def _dominant(units: Sequence[Unit]) -> Unit | None:
    """Return the unit with more than half of the parameters in units that can be opened; layers after pooling aside."""
    divisible = [unit for unit in units if unit.children and unit.is_sequence and not unit.is_pooled]
    big = max(divisible, key=lambda unit: unit.size, default=None)
    return big if big and big.size > sum(unit.size for unit in divisible) / 2 else None


def _opened(units: list[Unit], big: Unit, count_stages: Callable[[Sequence[Unit]], int]) -> list[Unit] | None:
    """Open a unit, the dominant one inside it, and so on, until there are more stages; None if there never are."""
    at, before, pieces = units.index(big), count_stages(units), [big]
    while inner := _dominant(pieces):
        place = pieces.index(inner)
        pieces[place : place + 1] = inner.children
        finer = [*units[:at], *pieces, *units[at + 1 :]]
        if count_stages(finer) > before:
            return finer
    return None
