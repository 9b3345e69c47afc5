"""The model's side of a load: its parameters and persistent buffers by name, tied ones together."""

import difflib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lit_transfer.weights._errors import WeightsError


@dataclass(frozen=True, eq=False)
class Target:
    """A module and the place of its tensors.

    Attributes:
        model: The whole model.
        slots: Name -> parameter or persistent buffer, in the order of the modules; tied ones under each name.
        transient: Names of buffers that are not persistent.
        optional: Names of buffers that the model may keep where a file lacks them; it says so as `optional_buffers`.
    """

    model: nn.Module
    slots: dict[str, Tensor]
    transient: frozenset[str]
    optional: frozenset[str] = frozenset()

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """Each module under its dotted name; the model itself under ""."""
        return dict(self.model.named_modules(remove_duplicate=False))

    @cached_property
    def empty(self) -> frozenset[str]:
        """Names of the modules that compute nothing: an Identity, dropout, or containers of such."""
        nothing = (nn.Identity, nn.Dropout, nn.Flatten, nn.Sequential, nn.ModuleList)
        working = [name for name, module in self.modules.items() if not isinstance(module, nothing)]
        ends = ((name, i) for name in working for i, letter in enumerate(name) if letter == ".")
        return frozenset(self.modules) - frozenset(working) - frozenset(name[:i] for name, i in ends)

    @cached_property
    def leaves(self) -> frozenset[str]:
        """The last segments of the slots' names."""
        return frozenset(name.rpartition(".")[2] for name in self.slots)

    @cached_property
    def places(self) -> frozenset[str]:
        """Each slot's name, and each dotted name above one."""
        ends = ((name, i) for name in self.slots for i, letter in enumerate(name) if letter == ".")
        return frozenset(self.slots) | frozenset(name[:i] for name, i in ends)

    @cached_property
    def aliases(self) -> dict[int, list[str]]:
        """Identity of a tensor -> the names under which the model holds it."""
        names: dict[int, list[str]] = {}
        for name, tensor in self.slots.items():
            names.setdefault(id(tensor), []).append(name)
        return names

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The slots of a submodule; names stay whole."""
        return {name: tensor for name, tensor in self.slots.items() if is_under(name, prefix)}

    def owner(self, name: str) -> nn.Module:
        """The module that holds a slot."""
        return self.modules[name.rpartition(".")[0]]


def target_of(model: nn.Module) -> Target:
    """Collect the tensors that a load may fill.

    Raises:
        WeightsError: A parameter has no shape yet (lazy modules), or a module keeps its weights in a form that cannot
            be filled (quantised layers, FSDP of before fully_shard).
    """
    slots: dict[str, Tensor] = {}
    transient = set()
    for prefix, module in model.named_modules(remove_duplicate=False):
        _require_open(prefix, module)
        dot = f"{prefix}." if prefix else ""
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if is_lazy(parameter):
                    raise WeightsError(f"{dot}{name} has no shape yet: run the model once on a batch, then load")
                slots[dot + name] = parameter
        for name, buffer in module._buffers.items():
            if name in module._non_persistent_buffers_set:
                transient.add(dot + name)
            elif buffer is not None:
                slots[dot + name] = buffer
    if not slots:
        raise WeightsError(f"{type(model).__name__} has no parameters to load into")
    return Target(model, slots, frozenset(transient), frozenset(getattr(model, "optional_buffers", ())))


def is_sharded(tensor: Tensor) -> bool:
    """Whether this is a DTensor, as fully_shard makes of parameters. Its module is imported if there are any."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def _require_open(name: str, module: nn.Module) -> None:
    """Refuse a module whose weights are not its parameters; give one of fully_shard its shards back."""
    if hasattr(module, "_packed_params"):  # each quantised layer of torch has it
        raise WeightsError(
            f"{name or type(module).__name__} is a quantised layer, whose weights are packed: load into the model "
            "before it is quantised"
        )
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None and isinstance(module, fsdp.FullyShardedDataParallel):
        raise WeightsError(
            f"{name or 'the model'} is wrapped by FullyShardedDataParallel: load before it is wrapped, or use "
            "torch.distributed.fsdp.fully_shard"
        )
    sharded: Any = module
    if fsdp is not None and isinstance(sharded, fsdp.FSDPModule):
        sharded.reshard()  # after a forward pass without a backward pass its parameters are gathered copies


def is_under(name: str, prefix: str) -> bool:
    """Whether a dotted name is `prefix` or lies below it. Whole segments count; everything lies below ""."""
    return not prefix or name == prefix or name.startswith(prefix + ".")


def is_under_any(name: str, prefixes: Iterable[str]) -> bool:
    """Whether a dotted name lies at or below one of the prefixes."""
    return any(is_under(name, prefix) for prefix in prefixes)


def require_module(target: Target, name: str, argument: str) -> None:
    """Raise a WeightsError with the nearest names if the model has no such module."""
    if name not in target.modules:
        near = difflib.get_close_matches(name, target.modules, n=3)
        hint = f"; nearest: {', '.join(near)}" if near else f"; it has {', '.join(list(target.modules)[1:6])} ..."
        raise WeightsError(f"{argument}={name!r}: {type(target.model).__name__} has no module of that name{hint}")


def is_counter(name: str) -> bool:
    """Whether this is a normalisation layer's batch counter, which files of before 2018 lack and nobody needs."""
    return name.rpartition(".")[2] == "num_batches_tracked"
