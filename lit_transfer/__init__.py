"""Transfer learning for PyTorch Lightning: any checkpoint file into any model, and frozen means frozen."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_transfer.backbones import create_backbone, list_backbones
    from lit_transfer.devices import emptiest_gpus
    from lit_transfer.freezing import freeze, frozen_names, unfreeze
    from lit_transfer.parameter_groups import param_groups
    from lit_transfer.predictor import load_predictor
    from lit_transfer.stages import trace_stages
    from lit_transfer.weights import WeightsError, load_weights, open_checkpoint, plan_weights, save_weights

# Public name -> the room it lives in. Imported on first use, so that `import lit_transfer` costs no more than torch.
_ROOMS = {
    "WeightsError": "weights",
    "create_backbone": "backbones",
    "emptiest_gpus": "devices",
    "freeze": "freezing",
    "frozen_names": "freezing",
    "list_backbones": "backbones",
    "load_predictor": "predictor",
    "load_weights": "weights",
    "open_checkpoint": "weights",
    "param_groups": "parameter_groups",
    "plan_weights": "weights",
    "save_weights": "weights",
    "trace_stages": "stages",
    "unfreeze": "freezing",
}

__all__ = [  # noqa: RUF022  (in the order in which a reader meets them)
    "load_weights",
    "plan_weights",
    "open_checkpoint",
    "save_weights",
    "WeightsError",
    "create_backbone",
    "list_backbones",
    "trace_stages",
    "freeze",
    "unfreeze",
    "frozen_names",
    "param_groups",
    "load_predictor",
    "emptiest_gpus",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import a public name from its room (PEP 562)."""
    if name not in _ROOMS:
        raise AttributeError(f"module 'lit_transfer' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"lit_transfer.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOMS])
