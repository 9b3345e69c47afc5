"""What travels in the file beside the weights: task, names, thresholds, and how an image is made ready."""

import json
from dataclasses import dataclass
from typing import Any

import lit_transfer
from lit_transfer.modules import ImageClassifier, ImageRegressor, MultiLabelClassifier, TransferModule

# The words in which `TableData` tells tasks, and what the answers are.
_TASKS: tuple[tuple[type[TransferModule], str, str], ...] = (
    (ImageClassifier, "class", "probabilities"),
    (MultiLabelClassifier, "multilabel", "probabilities"),
    (ImageRegressor, "number", "numbers in their own units"),
)
_NAMES = ("class_names", "label_names", "target_names")


@dataclass(frozen=True)
class About:
    """What is known of a module and kept in every format.

    Attributes:
        task: `"class"`, `"multilabel"`, `"number"`, or `"other"` for a module of the user's own.
        answers: What the outputs are, in words.
        values: All that is kept, as plain values.
    """

    task: str
    answers: str
    values: dict[str, Any]

    def text(self) -> dict[str, str]:
        """Give the values as text, lists and dictionaries as JSON, for formats that keep text alone."""
        return {name: value if isinstance(value, str) else json.dumps(value) for name, value in self.values.items()}


def about(module: TransferModule, *, takes: str, gives: str, source: str) -> About:
    """Collect what is kept of a module.

    Args:
        module: The module.
        takes: What the file's input is, in words.
        gives: What its output is, in words.
        source: What it was made of.
    """
    task, answers = task_of(module)
    names = {name: told for name in _NAMES if (told := getattr(module, name, None))}
    thresholds = {"thresholds": module.thresholds.tolist()} if isinstance(module, MultiLabelClassifier) else {}
    values = {
        "task": task,
        **names,
        **thresholds,
        "preprocessing": module.preprocessing.to_dict(),
        "input": takes,
        "output": gives,
        "backbone": module.backbone.name,
        "provenance": f"lit_transfer {lit_transfer.__version__}: {source}",
    }
    return About(task, answers, values)


def task_of(module: TransferModule) -> tuple[str, str]:
    """Give the task in a word, and what the answers are."""
    found = [(task, answers) for cls, task, answers in _TASKS if isinstance(module, cls)]
    return found[0] if found else ("other", "what predict_step gives")


def pixels_in_words(module: TransferModule) -> str:
    """Say what a graph takes that normalises by itself."""
    made = module.preprocessing
    return f"images: uint8 (N, {len(made.mean)}, {made.crop}, {made.crop}), {_channels(module)} from 0 to 255"


def inputs_in_words(module: TransferModule) -> str:
    """Say what a network takes whose images are normalised before."""
    made = module.preprocessing
    shape = f"(N, {len(made.mean)}, {made.crop}, {made.crop})"
    return f"images: float32 {shape}, {_channels(module)}, divided by 255 and normalised by mean and std"


def answers_in_words(module: TransferModule) -> str:
    """Say what comes out of a graph, and of a module that is built again."""
    return f"answers: float32 {_outputs(module)}, {task_of(module)[1]}{_of(module)}"


def logits_in_words(module: TransferModule) -> str:
    """Say what comes out of an upstream model, which leaves the last step to its user."""
    task, answers = task_of(module)
    last = {"class": "logits: softmax makes the probabilities", "multilabel": "logits: sigmoid makes the probabilities"}
    return f"float32 {_outputs(module)}, {last.get(task, answers)}{_of(module)}"


def _outputs(module: TransferModule) -> str:
    return f"(N, {module.num_outputs})" if module.num_outputs else "(N, ...)"


def _of(module: TransferModule) -> str:
    names: list[str] | None = getattr(module, "output_names", None)
    return f" of {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}" if names else ""


def _channels(module: TransferModule) -> str:
    return {1: "grey", 3: "RGB", 4: "RGBA"}.get(len(module.preprocessing.mean), "channels")
