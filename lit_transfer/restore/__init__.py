"""A foreign training checkpoint read for a model: weights, counters, best score, optimizer state by parameter name."""

from lit_transfer.restore._atomic import damage, save_atomically
from lit_transfer.restore._contents import ENTRY, Contents, contents_of, is_as_written, is_lightning
from lit_transfer.restore._distributed import gather_folder, is_distributed_folder
from lit_transfer.restore._newest import checkpoints_in, first_whole
from lit_transfer.restore._optimizer import NamedState, by_name, for_optimizers, group_map, is_as_saved
from lit_transfer.restore._plain import plain_root, plain_value
from lit_transfer.restore._random_state import capture_random_state, restore_random_state
from lit_transfer.restore._scheduler import for_scheduler
from lit_transfer.restore._scores import score_for
from lit_transfer.restore._training_state import TrainingState, read_training_state

__all__ = [
    "ENTRY",
    "Contents",
    "NamedState",
    "TrainingState",
    "by_name",
    "capture_random_state",
    "checkpoints_in",
    "contents_of",
    "damage",
    "first_whole",
    "for_optimizers",
    "for_scheduler",
    "gather_folder",
    "group_map",
    "is_as_saved",
    "is_as_written",
    "is_distributed_folder",
    "is_lightning",
    "plain_root",
    "plain_value",
    "read_training_state",
    "restore_random_state",
    "save_atomically",
    "score_for",
]
