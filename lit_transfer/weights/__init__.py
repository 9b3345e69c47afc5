"""Weights from any file into any model: read safely, matched by search, all or nothing, told."""

from lit_transfer.weights._checkpoint import Checkpoint, Source, open_checkpoint, open_distributed
from lit_transfer.weights._choose import Prefer, main_state_dict
from lit_transfer.weights._describe import describe, diff_checkpoints
from lit_transfer.weights._errors import WeightsError
from lit_transfer.weights._guess import torchvision_family
from lit_transfer.weights._layouts import StateDict
from lit_transfer.weights._load import load_weights, plan_weights
from lit_transfer.weights._map_location import MapLocation
from lit_transfer.weights._plan import Entry, Plan
from lit_transfer.weights._report import LoadReport
from lit_transfer.weights._save import save_weights

__all__ = [
    "Checkpoint",
    "Entry",
    "LoadReport",
    "MapLocation",
    "Plan",
    "Prefer",
    "Source",
    "StateDict",
    "WeightsError",
    "describe",
    "diff_checkpoints",
    "load_weights",
    "main_state_dict",
    "open_checkpoint",
    "open_distributed",
    "plan_weights",
    "save_weights",
    "torchvision_family",
]
