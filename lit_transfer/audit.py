"""What is trainable, owned, shared and normalised how: a table of the stages, and errors for what cannot be right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.optim import Optimizer

from lit_transfer.freezing import is_held, updates_statistics
from lit_transfer.stages import Stage, stages_of

__all__ = ["StageAudit", "audit", "check_optimizers", "check_trainability", "checksums", "idle", "table"]


@dataclass(frozen=True)
class StageAudit:
    """One stage as it stands.

    Attributes:
        stage: Its name.
        parameters: Number of its parameters' elements.
        trainable: How many of them receive gradients.
        lr: Learning rates of the groups that hold it, each once; empty without an optimizer.
        weight_decay: Their weight decays, each once.
        norms: How its norm layers with statistics normalise in train mode: by the batch, by the running statistics,
            both, or "none" where it has no such layers.
    """

    stage: str
    parameters: int
    trainable: int
    lr: tuple[float, ...]
    weight_decay: tuple[float, ...]
    norms: Literal["batch", "running", "mixed", "none"]


def audit(
    module: nn.Module,
    optimizers: Sequence[Optimizer] = (),
    *,
    stages: Sequence[Stage] | None = None,
    factors: Mapping[str, float] | None = None,
) -> tuple[StageAudit, ...]:
    """Describe each stage of a module: what trains, at which rate, and how it normalises.

    Args:
        module: Any module, in the mode in which it trains.
        optimizers: Its optimizers, if there are any.
        stages: The stages of `module`; traced if not given.
        factors: What multiplies the rates of each stage in the next step, where a schedule's phase sets its own.
    """
    named = dict(module.named_parameters())
    groups = {id(p): group for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    rows = []
    for stage in stages_of(module) if stages is None else stages:
        members = [named[name] for name in stage.parameters]
        owned = [groups[id(p)] for p in members if id(p) in groups]
        factor = (factors or {}).get(stage.name, 1.0)
        rows.append(
            StageAudit(
                stage.name,
                sum(p.numel() for p in members),
                sum(p.numel() for p in members if p.requires_grad),
                tuple(sorted({factor * float(group["lr"]) for group in owned})),
                tuple(sorted({float(group.get("weight_decay", 0.0)) for group in owned})),
                _norms(module, stage),
            )
        )
    return tuple(rows)


def table(rows: Iterable[StageAudit]) -> str:
    """Write the audit as a table for people, one line for each stage."""
    lines = [("stage", "parameters", "trainable", "learning rate", "weight decay", "norms")]
    for row in rows:
        state = "all" if row.trainable == row.parameters else f"{row.trainable:,}" if row.trainable else "frozen"
        decay = ", ".join(f"{value:g}" for value in row.weight_decay)
        lines.append((row.stage, f"{row.parameters:,}", state, ", ".join(f"{x:.3g}" for x in row.lr), decay, row.norms))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def idle(module: nn.Module, optimizers: Sequence[Optimizer], stages: Iterable[Stage]) -> list[str]:
    """Return the stages that receive gradients and never move: each of their groups began with the learning rate 0."""
    named = dict(module.named_parameters())
    groups = {id(p): group for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    found = []
    for stage in stages:
        trains = [named[name] for name in stage.parameters if named[name].requires_grad]
        # A scheduler may begin at 0: what counts is the rate that it scales.
        rates = [group.get("initial_lr", group["lr"]) for group in (groups[id(p)] for p in trains if id(p) in groups)]
        if rates and not any(rates):
            found.append(stage.name)
    return found


def check_trainability(module: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Raise for what no training can be meant to do, given what is trainable now.

    Args:
        module: The module, in train mode.
        optimizers: Its optimizers.

    Raises:
        ValueError: A parameter trains and is in no optimizer, or is in one twice; it is shared by a part that trains
            and one that is frozen; a norm layer is frozen and its running statistics move.
    """
    check_optimizers(module, optimizers, [name for name, p in module.named_parameters() if p.requires_grad])
    _check_tied(module)
    moving = [name for name, part in module.named_modules() if _moves_while_frozen(part)]
    if moving:
        raise ValueError(
            f"{some(moving)} {'is' if len(moving) == 1 else 'are'} frozen, but in train mode: running statistics move "
            "with every batch. Freeze with lit_transfer.freeze or FinetuningSchedule, not with requires_grad alone; or "
            "choose it: freeze(..., update_statistics=True)."
        )


def check_optimizers(module: nn.Module, optimizers: Sequence[Optimizer], trains: Iterable[str]) -> None:
    """Raise unless every parameter that trains, now or later, is in an optimizer, and none is in one twice.

    Args:
        module: The module that is trained.
        optimizers: What `configure_optimizers` gave.
        trains: Names of the parameters that are to train at any time.

    Raises:
        ValueError: Parameters that no optimizer has, or that are there twice, and what to write.
    """
    counts = Counter(id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"])
    named = dict(module.named_parameters())
    left_out = [name for name in trains if not counts[id(named[name])]]
    if left_out:
        raise ValueError(
            f"{some(left_out)} will train, but no optimizer has {'it' if len(left_out) == 1 else 'them'}: "
            "configure_optimizers left out what was frozen when it ran, for example by a filter on requires_grad or by "
            "passing the head only. Pass everything, e.g. AdamW(param_groups(self, lr=1e-3)) or "
            "AdamW(self.parameters()): a frozen parameter has no gradient, and the optimizer skips it."
        )
    twice = [name for name, parameter in named.items() if counts[id(parameter)] > 1]
    if twice:
        raise ValueError(
            f"{some(twice)} {'is' if len(twice) == 1 else 'are'} in the optimizers twice, and would be moved twice in "
            "each step. Each parameter belongs into one group of one optimizer: see lit_transfer.param_groups."
        )


def checksums(module: nn.Module) -> torch.Tensor:
    """Return one whole number for each parameter: two ranks with equal bits have equal numbers. Shape (parameters,)."""
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    values = [torch.view_as_real(p) if p.is_complex() else p for p in (p.detach() for p in module.parameters())]
    return torch.stack([p.contiguous().view(words[p.element_size()]).sum(dtype=torch.int64) for p in values])


def some(names: Sequence[str], most: int = 4) -> str:
    """Write the first few of many names."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _norms(module: nn.Module, stage: Stage) -> Literal["batch", "running", "mixed", "none"]:
    units = [module.get_submodule(name) for name in stage.modules]
    found = {_in_train_mode(part) for unit in units for part in unit.modules() if _has_statistics(part)}
    if len(found) == 2:
        return "mixed"
    return "none" if not found else "batch" if found == {True} else "running"


def _in_train_mode(part: nn.Module) -> bool:
    # The module may be seen during validation: what counts is whether train() will wake it.
    return not is_held(part)


def _has_statistics(part: nn.Module) -> bool:
    return isinstance(part, nn.modules.batchnorm._NormBase) and part.running_mean is not None


def _moves_while_frozen(part: nn.Module) -> bool:
    own = list(part.parameters(recurse=False))
    still = bool(own) and not any(p.requires_grad for p in own)
    return still and _has_statistics(part) and part.training and not updates_statistics(part)


def _check_tied(module: nn.Module) -> None:
    places: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        places.setdefault(id(parameter), []).append(name)
    for shared in (names for names in places.values() if len(names) > 1):
        states = {name: _trains_around(module, name, places) for name in shared}
        if {True, False} <= set(states.values()):
            trains = [name for name, state in states.items() if state]
            frozen = [name for name, state in states.items() if state is False]
            raise ValueError(
                f"{frozen[0]} and {trains[0]} are one parameter, tied across a frozen boundary: what is around the "
                "first is frozen, what is around the second trains. Freeze both parts or train both; naming one place "
                "of a tied parameter names it everywhere."
            )


def _trains_around(module: nn.Module, name: str, places: dict[int, list[str]]) -> bool | None:
    """Whether other parameters near this place train; None where all of the module is this one parameter."""
    path = name.split(".")[:-1]
    while True:
        owner = module.get_submodule(".".join(path))
        others = [p.requires_grad for p in owner.parameters() if len(places[id(p)]) == 1]
        if others or not path:
            return any(others) if others else None
        path.pop()
