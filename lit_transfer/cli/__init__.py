"""`lit-transfer`: the first word chooses the command; only that command's imports are paid for."""

import importlib
import os
import sys
from collections.abc import Sequence

from lit_transfer.cli._parsing import CommandParser

# Command -> (module whose `main(argv)` runs it, what it does).
_COMMANDS = {
    "fit": ("training", "Fine-tune a pretrained backbone on your data."),
    "validate": ("training", "Measure a model on the validation data."),
    "test": ("training", "Measure a checkpoint on the test data."),
    "schedule": ("schedule", "Show which stages would train when and at which rate, before any training."),
    "probe": ("probe", "Measure what each stage of a backbone knows of your classes, by linear probes and k-NN."),
    "calibrate": ("calibrate", "Fit a classifier's temperature, so that its probabilities mean what they say."),
    "lr-find": ("lr_find", "Find a learning rate for the head, by raising it until the loss grows."),
    "predict": ("predict", "Label images with a checkpoint."),
    "inspect": ("inspect", "Show what is in a checkpoint; nothing in it is run."),
    "match": ("match", "Show how a checkpoint would be loaded into a backbone; nothing is loaded."),
    "convert": ("convert", "Write the weights of a checkpoint in another format, under other names, or slimmed."),
    "export": (
        "export",
        "Write a checkpoint as ONNX, torch.export, safetensors or torchvision's own, compared with it.",
    ),
    "diff": ("diff", "Compare two checkpoints tensor by tensor."),
    "backbones": ("backbones", "List backbones: size, input, and which pretrained weights exist."),
    "cache": ("cache", "List or clear the features that FeatureCaching has stored."),
    "demo": ("demo", "Watch transfer learning work on handwritten digits; needs no network and under a minute."),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; what the user got wrong is one line on standard error and exit code 2.

    Args:
        argv: The command's name and its arguments; those of the process if None.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words) or 0
    except BrokenPipeError:  # the reader (`head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        from lit_transfer.cli._errors import one_line

        if os.environ.get("LIT_TRANSFER_TRACEBACK") or (line := one_line(error)) is None:
            raise
        print(f"{' '.join(['lit-transfer', *words[:1]])}: error: {line}", file=sys.stderr)
        return 2
    return 0


def _run(words: list[str]) -> int | None:
    """Run the command; `match` and `diff` answer with an exit code."""
    if words and words[0] in _COMMANDS:
        code: int | None = importlib.import_module(f"lit_transfer.cli.{_COMMANDS[words[0]][0]}").main(words)
        return code
    _parser().parse_args(words or ["--help"])
    return None


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="lit-transfer",
        description="Transfer learning with PyTorch Lightning. `lit-transfer COMMAND --help` tells more.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (_, summary) in _COMMANDS.items():
        commands.add_parser(name, help=summary)
    return parser
