"""Names of classes, where a checkpoint or a model carries them."""

import json
from collections.abc import Sequence
from typing import Any

from torch import nn

from lit_transfer.weights._checkpoint import Checkpoint
from lit_transfer.weights._errors import WeightsError
from lit_transfer.weights._stand_ins import StandIn

_KEYS = ("class_names", "classes", "class_to_idx")
_IN_ORDER = ("label_names", "target_names")  # beside the head, thresholds and scales stand in their order
_PLACES = ("lit_transfer", "hyper_parameters", "meta", "config", "args")


def classes_of_file(checkpoint: Checkpoint) -> tuple[str, ...] | None:
    """The class names in a checkpoint: at the top, in its hyperparameters, or in its metadata."""
    return _names_in(checkpoint, _KEYS)


def require_same_outputs(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Refuse a file whose labels or targets are as many as the model's, and others, or in another order.

    Raises:
        WeightsError: They are.
    """
    for key in _IN_ORDER:
        theirs, ours = _names_in(checkpoint, (key,)), _names(getattr(model, key, None))
        if theirs and ours and theirs != ours and len(theirs) == len(ours):
            raise WeightsError(
                f"{checkpoint.name} has the {key} {', '.join(theirs[:8])}, the model {', '.join(ours[:8])}: its head "
                f"would answer for the wrong ones. Load target='backbone', or build the model with the file's {key}"
            )


def _names_in(checkpoint: Checkpoint, keys: Sequence[str]) -> tuple[str, ...] | None:
    root = checkpoint.root
    if not isinstance(root, dict):
        return None
    places = [root, *(_mapping(root.get(place)) for place in _PLACES)]
    places.append({key: _parsed(value) for key, value in checkpoint.metadata.items() if key in keys})
    return next((names for place in places for key in keys if (names := _names(place.get(key)))), None)


def classes_of_model(model: nn.Module) -> tuple[str, ...] | None:
    """The model's `class_names`, if it has any."""
    return _names(getattr(model, "class_names", None))


def _names(value: Any) -> tuple[str, ...] | None:
    if isinstance(value, dict) and sorted(map(str, value.values())) == sorted(map(str, range(len(value)))):
        value = sorted(value, key=lambda name: int(value[name]))  # {"ants": 0, "bees": 1}
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return None
    return tuple(value) if all(isinstance(name, str) for name in value) else None


def _mapping(value: Any) -> dict[Any, Any]:
    if isinstance(value, StandIn):
        return {**value.items, **value.attributes}
    return value if isinstance(value, dict) else {}


def _parsed(text: Any) -> Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return None
