"""Which upstream model the commands compare a file with: one that is named, or the one that the file tells of."""

import re
from typing import Any

from lit_transfer._entry import find_entry
from lit_transfer.cli._parsing import CommandParser
from lit_transfer.weights import Checkpoint, main_state_dict

_ARGUMENT = re.compile(r"\b(key|prefer|include|exclude|on_mismatch|min_coverage)=(\[.*?\]|'[^']*'|[\d.]+)")


def add_model_arguments(parser: CommandParser) -> None:
    """Add how the model is built that a file is compared with."""
    parser.add_argument("--in-channels", type=int, help="channels of its images; 3 if the file does not tell")
    parser.add_argument("--input-size", type=int, help="side of its images in pixels; upstream's if not told")


def saved_by_us(checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a TransferModule wrote into its checkpoint, and its hyperparameters; empty for other files."""
    return find_entry(checkpoint) or ({}, {})


def backbone_of(checkpoint: Checkpoint, key: str | None, option: str) -> str:
    """Name the backbone that one of our checkpoints was made with, or the torchvision model that another file fills.

    Args:
        checkpoint: The file.
        key: Place of the state dict in it; found if None.
        option: The option that names a backbone, for the error.

    Raises:
        ValueError: There is none.
    """
    from lit_transfer.backbones import guess_backbone

    named = saved_by_us(checkpoint)[1].get("backbone")
    found = named if isinstance(named, str) else guess_backbone(main_state_dict(checkpoint, key)[0])
    if found is None:
        raise ValueError(
            f"{checkpoint.name} tells of no backbone and fills none of torchvision's models: give {option} NAME"
        )
    return found


def model_options(checkpoint: Checkpoint, in_channels: int | None, input_size: int | None) -> dict[str, Any]:
    """The channels and the size that are asked for, else those that the checkpoint was made with."""
    hparams = saved_by_us(checkpoint)[1]
    return {
        "in_channels": in_channels or hparams.get("in_channels") or 3,
        "input_size": input_size or hparams.get("input_size"),
    }


def as_flags(text: str) -> str:
    """Write the arguments that a message of our functions names as options of a command."""
    return _ARGUMENT.sub(lambda found: f"--{found[1].replace('_', '-')} {re.sub(r'[][,]', '', found[2])}", text)
