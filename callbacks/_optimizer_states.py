"""Optimizers and schedulers of a checkpoint, put in order for those of this run before Lightning restores them."""

from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch.optim import Optimizer

from lit_transfer.restore import ENTRY, TrainingState, for_optimizers, for_scheduler, group_map, is_as_saved

__all__ = ["fill_optimizers", "parameter_names"]


def parameter_names(module: LightningModule, optimizers: list[Optimizer]) -> list[list[list[str]]]:
    """The names of the parameters of each group of each optimizer; "" for one that is not the module's."""
    names = _names(module)
    return [[[names.get(id(p), "") for p in group["params"]] for group in o.param_groups] for o in optimizers]


def fill_optimizers(
    checkpoint: dict[str, Any], trainer: Trainer, state: Callable[[], TrainingState], *, by_position: bool
) -> list[str]:
    """Write the states of optimizers and schedulers that fit this run into `checkpoint`.

    Args:
        checkpoint: What Lightning is going to restore; states that fit as they are stay as they are.
        trainer: The trainer, whose optimizers exist.
        state: Gives the same file with moments by name; asked only where positions do not say it.
        by_position: Whether the states may be taken as they are if they fit.

    Returns:
        What could not be carried over, in words.
    """
    saved = checkpoint["optimizer_states"]
    recorded = (checkpoint.get(ENTRY) or {}).get("parameter_names") or [None] * len(saved)
    pairs = zip(saved, trainer.optimizers, recorded, strict=False)
    names = _names(trainer.lightning_module)
    fitting = by_position and len(saved) == len(trainer.optimizers) == len(recorded)
    if fitting and all(is_as_saved(old, optimizer, names, known) for old, optimizer, known in pairs):
        return _fill_schedulers(checkpoint, trainer, checkpoint["lr_schedulers"], None)
    found = state()
    checkpoint["optimizer_states"] = []
    if found.optimizer is None:
        told = ["the optimizer starts afresh"]
        return [*told, *_fill_schedulers(checkpoint, trainer, (), None)]
    checkpoint["optimizer_states"], told = for_optimizers(found.optimizer, trainer.optimizers, names)
    schedulers = found.schedulers if checkpoint["optimizer_states"] else ()
    return [*told, *_fill_schedulers(checkpoint, trainer, schedulers, found)]


def _fill_schedulers(
    checkpoint: dict[str, Any], trainer: Trainer, saved: Any, state: TrainingState | None
) -> list[str]:
    """Take the schedulers' states in their order; one that is not carried over keeps its fresh state."""
    states, told = [], []
    for number, config in enumerate(trainer.lr_scheduler_configs):
        own = config.scheduler.state_dict()
        carried = (
            _scheduler_state(saved[number], own, config.scheduler.optimizer, trainer, state)
            if number < len(saved)
            else None
        )
        states.append(own if carried is None else carried)
        if carried is None:
            reason = ": the file's is of another kind" if number < len(saved) else ""
            told.append(f"the scheduler {type(config.scheduler).__name__} starts afresh{reason}")
    if len(saved) > len(states):
        told.append(f"{len(saved) - len(states)} of {len(saved)} schedulers: this run has no more")
    checkpoint["lr_schedulers"] = states
    return told


def _scheduler_state(
    saved: Mapping[Any, Any], own: dict[str, Any], optimizer: Optimizer, trainer: Trainer, state: TrainingState | None
) -> dict[str, Any] | None:
    if state is None or state.optimizer is None:
        count = len(optimizer.param_groups)
        return for_scheduler(saved, own, range(count), count)
    members = parameter_names(trainer.lightning_module, [optimizer])[0]
    return for_scheduler(saved, own, group_map(state.optimizer, members), len(state.optimizer.options))


def _names(module: LightningModule) -> dict[int, str]:
    return {id(parameter): name for name, parameter in module.named_parameters()}
