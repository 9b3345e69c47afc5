"""The state of learning rate schedulers, into the groups of a new run."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from lit_transfer.restore._plain import plain_value

# What some torch versions keep in a scheduler's state and others do not.
_BOOKKEEPING = {"verbose", "_get_lr_called_within_step", "_is_initial", "_initial_step", "_last_lr", "_step_count"}
GroupMap: TypeAlias = Sequence[int | None]


def for_scheduler(
    saved: Mapping[Any, Any], own: Mapping[str, Any], groups: GroupMap, old_groups: int
) -> dict[str, Any] | None:
    """Make the state that a new run's scheduler takes.

    The state does not say of which class it is: it is taken for the same one if it has the same entries.

    Args:
        saved: The state in the file.
        own: The state of the new run's scheduler, fresh.
        groups: For each group of the new run, the number of the group that its parameters had in the file.
        old_groups: How many groups there were in the file.

    Returns:
        The state, or None if it is of another scheduler.
    """
    lost: list[str] = []
    plain = plain_value(saved, lost)
    if lost or plain.keys() - _BOOKKEEPING != own.keys() - _BOOKKEEPING:
        return None
    made = dict(own)
    for name, value in plain.items():
        if name in own:
            made[name] = _entry(value, own[name], groups, old_groups)
    return made


def _entry(value: Any, own: Any, groups: GroupMap, old_groups: int) -> Any:
    if isinstance(own, dict) and isinstance(value, dict):
        return type(own)(value)  # MultiStepLR counts its milestones with a Counter
    if not isinstance(own, list) or not isinstance(value, list):
        return value
    if len(own) != len(groups) or len(value) != old_groups or list(groups) == list(range(old_groups)):
        return value
    means_difference = any(item != own[0] for item in own) and all(item == value[0] for item in value)
    return [mine if means_difference or at is None else value[at] for mine, at in zip(own, groups, strict=True)]
