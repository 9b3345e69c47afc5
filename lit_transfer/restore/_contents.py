"""What kind of checkpoint a file is, and which of its parts are which: told by their structure, names help."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import Tensor

from lit_transfer.restore._plain import is_tensor, number
from lit_transfer.weights import Checkpoint

Kind: TypeAlias = Literal["lightning", "dictionary", "module", "weights"]

# What TolerantRestore adds to every checkpoint: {"parameter_names": optimizer -> group -> names}.
ENTRY = "lit_transfer_restore"
_EPOCHS = ("epoch", "epochs", "current_epoch", "cur_epoch", "last_epoch", "epoch_num", "epoch_idx", "ep")
_NEXT_EPOCHS = ("start_epoch", "next_epoch")
_STEPS = ("global_step", "step", "steps", "iteration", "iterations", "iter", "iter_num", "num_updates", "n_iter")
_SCORE = re.compile(
    r"(^|_)(best|acc|accuracy|prec|top|loss|err|error|mae|mse|rmse|auc|auroc|f1|m?iou|dice|map)\d*(_|$)"
)
_NO_SCORE = re.compile(r"epoch|step|iter|lr|path|state|model|weight")


@dataclass(frozen=True)
class Contents:
    """The parts of a checkpoint that training goes on with. Tensors are not read yet.

    Attributes:
        kind: "lightning" for Lightning's own, "dictionary" for a dictionary by hand, "module" for a module that was
            pickled whole, "weights" for a state dict alone.
        optimizers: The states of optimizers, as `Optimizer.state_dict()` gives them.
        schedulers: The states of learning rate schedulers.
        scaler: The state of a gradient scaler, or None.
        epoch: The epoch that the file names, as it names it.
        epoch_is_next: Whether the name of that entry says that it is the epoch to start with.
        step: Optimizer steps done, if the file counts them.
        scores: Numbers whose names are those of metrics.
        names: Names of the parameters of each group of each optimizer, where `TolerantRestore` saved them.
        unused: Top-level entries that are none of these and hold no weights.
    """

    kind: Kind
    optimizers: tuple[dict[Any, Any], ...] = ()
    schedulers: tuple[dict[Any, Any], ...] = ()
    scaler: dict[Any, Any] | None = None
    epoch: int | None = None
    epoch_is_next: bool = False
    step: int | None = None
    scores: dict[str, float] | None = None
    names: list[list[list[str]]] | None = None
    unused: tuple[str, ...] = ()


def contents_of(checkpoint: Checkpoint) -> Contents:
    """Find the parts of a checkpoint; nothing is read but single numbers."""
    root = checkpoint.root
    if not isinstance(root, dict):
        return Contents("module")
    if all(is_tensor(value) for value in root.values()):
        return Contents("weights")
    lightning = is_lightning(checkpoint)
    places = {name: root.get(name) for name in ("optimizer_states", "lr_schedulers")} if lightning else root
    parts = [(str(name), part) for name, value in places.items() for part in _parts(value)]
    values = [part for _, part in parts]
    epoch, epoch_name = _counter(root, (*_NEXT_EPOCHS, *_EPOCHS))
    done = _epochs_of_lightning(root)
    step, step_name = _counter(root, _STEPS)
    found = Contents(
        kind="lightning" if lightning else "dictionary",
        optimizers=tuple(filter(is_optimizer_state, values)),
        schedulers=tuple(root.get("lr_schedulers") or () if lightning else filter(is_scheduler_state, values)),
        scaler=next(filter(_is_scaler_state, values), None),
        epoch=epoch if done is None else done,
        epoch_is_next=epoch_name in _NEXT_EPOCHS or done is not None,
        step=step,
        scores=_scores(root),
        names=(root.get(ENTRY) or {}).get("parameter_names"),
    )
    used = {name for name, part in parts if _is_known(part)} | {epoch_name, step_name} | set(found.scores or ())
    held = {state_dict.key.split(".")[0] for state_dict in checkpoint.state_dicts}
    bare = {str(name) for name, value in root.items() if is_tensor(value)}
    unused = tuple(str(name) for name in root if str(name) not in used | held | bare)
    return Contents(**{**vars(found), "unused": unused})


def is_lightning(checkpoint: Checkpoint) -> bool:
    """Whether Lightning wrote the file, all of it."""
    root = checkpoint.root
    return isinstance(root, dict) and "pytorch-lightning_version" in root and isinstance(root.get("state_dict"), dict)


def is_as_written(checkpoint: Checkpoint, state_dict: Mapping[str, Tensor], *, strict: bool = True) -> bool:
    """Whether Lightning wrote the file and its weights have the names and shapes of a model's.

    Args:
        checkpoint: The opened file.
        state_dict: The model's state dict.
        strict: Whether the file must hold every one of them.
    """
    if not is_lightning(checkpoint):
        return False
    ours = {name: tuple(value.shape) for name, value in state_dict.items() if isinstance(value, Tensor)}
    theirs = {name: tuple(value.shape) for name, value in checkpoint.root["state_dict"].items() if is_tensor(value)}
    return theirs == ours if strict else theirs.items() <= ours.items()


def is_optimizer_state(value: Any) -> bool:
    """Whether this is what `Optimizer.state_dict()` gives."""
    if not isinstance(value, dict) or not isinstance(value.get("state"), dict):
        return False
    groups = value.get("param_groups")
    return isinstance(groups, list) and all(isinstance(group, dict) and "params" in group for group in groups)


def is_scheduler_state(value: Any) -> bool:
    """Whether this is what `LRScheduler.state_dict()` gives."""
    return (
        isinstance(value, dict) and "last_epoch" in value and bool({"_step_count", "base_lrs", "_last_lr"} & set(value))
    )


def _is_scaler_state(value: Any) -> bool:
    return isinstance(value, dict) and {"scale", "growth_factor", "_growth_tracker"} <= set(value)


def _is_known(value: Any) -> bool:
    return is_optimizer_state(value) or is_scheduler_state(value) or _is_scaler_state(value)


def _parts(value: Any) -> list[Any]:
    """The value itself, or what is in it: several optimizers stand in a list or in a dictionary."""
    if _is_known(value):
        return [value]
    if isinstance(value, dict) and not any(is_tensor(item) for item in value.values()):
        return [item for item in value.values() if _is_known(item)]
    return [item for item in value if _is_known(item)] if isinstance(value, list | tuple) else []


def _counter(root: dict[Any, Any], names: tuple[str, ...]) -> tuple[int | None, str]:
    for name in names:
        value = number(root.get(name))
        if value is not None and value == int(value) and value >= 0:
            return int(value), name
    return None, ""


def _epochs_of_lightning(root: dict[Any, Any]) -> int | None:
    """The epochs that Lightning's loops count; its "epoch" is the same number before and after an epoch's end."""
    place: Any = root
    for name in ("loops", "fit_loop", "epoch_progress", "current", "processed"):
        place = place.get(name) if isinstance(place, dict) else None
    return place if isinstance(place, int) else None


def _scores(root: dict[Any, Any]) -> dict[str, float]:
    found = {}
    for name, value in root.items():
        score = number(value)
        if score is None or not isinstance(name, str) or _NO_SCORE.search(name.lower()):
            continue
        if _SCORE.search(name.lower()) and abs(score) < float("inf"):
            found[name] = float(score)
    return found
