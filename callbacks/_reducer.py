"""The gradient reducer of DDP, made anew when the set of trainable parameters has changed."""

import copy
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

__all__ = ["note_reducer", "pristine_hook_state", "rebuild_reducer", "uncovered"]

_COVERED = "_lit_transfer_covered"  # on the DDP wrapper: ids of the parameters that its reducer covers


def pristine_hook_state(trainer: Trainer) -> dict[str, Any]:
    """Copy the state of the strategy's communication hook before it is used; empty where there is none."""
    return _copied(getattr(trainer.strategy, "_ddp_comm_state", None))


def rebuild_reducer(trainer: Trainer, hook_state: dict[str, Any]) -> bool:
    """Wrap the module in DDP again if the reducer does not cover exactly the parameters that train now.

    DDP reduces the gradients of what was trainable when it was built: a parameter that is unfrozen later is never
    synchronised, and the ranks drift apart without a word (pytorch-lightning#20340). To be called between an optimizer
    step and the next forward only: a reducer that changes between forward and backward loses that step's gradients.

    Args:
        trainer: The trainer that fits.
        hook_state: What `pristine_hook_state` gave: hooks such as PowerSGD keep tensors for each bucket.

    Returns:
        Whether the reducer was rebuilt.
    """
    strategy = trainer.strategy
    wrapped = strategy.model
    if not isinstance(strategy, DDPStrategy) or not isinstance(wrapped, DistributedDataParallel):
        return False
    # DDP does not tell what its reducer covers, so it is noted here; a wrap without a note is remade.
    trainable = _trainable(wrapped)
    if vars(wrapped).get(_COVERED) == trainable:
        return False
    for name, value in hook_state.items():
        setattr(strategy._ddp_comm_state, name, _fresh(value))
    strategy.model = strategy.lightning_module
    strategy._pl_static_graph_delay_done = False
    strategy.configure_ddp()
    vars(strategy.model)[_COVERED] = trainable
    return True


def note_reducer(trainer: Trainer) -> None:
    """Note what the reducer covers, right after the strategy has wrapped the module."""
    wrapped = trainer.strategy.model
    if isinstance(wrapped, DistributedDataParallel):
        vars(wrapped).setdefault(_COVERED, _trainable(wrapped))


def uncovered(trainer: Trainer) -> list[str]:
    """Return the names of the parameters that train and that DDP does not synchronise."""
    wrapped = trainer.strategy.model
    if not isinstance(wrapped, DistributedDataParallel) or _COVERED not in vars(wrapped):
        return []
    covered = vars(wrapped)[_COVERED]
    return [name for name, p in wrapped.module.named_parameters() if p.requires_grad and id(p) not in covered]


def _trainable(wrapped: DistributedDataParallel) -> frozenset[int]:
    return frozenset(id(parameter) for parameter in wrapped.module.parameters() if parameter.requires_grad)


def _copied(state: object) -> dict[str, Any]:
    slots = [name for kind in type(state).__mro__ for name in getattr(kind, "__slots__", ())]  # PowerSGDState has these
    names = [*slots, *getattr(state, "__dict__", {})]
    return {name: _fresh(getattr(state, name)) for name in names if hasattr(state, name)}


def _fresh(value: Any) -> Any:
    return copy.copy(value) if isinstance(value, (dict, list, set)) else value
