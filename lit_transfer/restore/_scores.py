"""Which score of a file belongs to which metric of a new run."""

import re
from collections.abc import Mapping

_FILLERS = {"best", "val", "valid", "validation", "test", "eval", "dev", "current", "last", "mean", "avg", "score"}
_SAME = {
    "accuracy": "acc",
    "prec": "acc",
    "precision": "acc",
    "top": "acc",
    "err": "error",
    "miou": "iou",
    "auroc": "auc",
}
_MAX = {"acc", "auc", "f", "iou", "dice", "map"}
_MIN = {"loss", "error", "mae", "mse", "rmse"}


def score_for(scores: Mapping[str, float], monitor: str, mode: str) -> tuple[str, float] | None:
    """Find the score that a run which watches `monitor` has to beat.

    An accuracy above 1 is a percentage, and is given as a fraction.

    Args:
        scores: Name in the file -> value.
        monitor: Name of the metric, for example "val_acc".
        mode: "min" if smaller is better, "max" if larger is.

    Returns:
        The name in the file and the value; None if no score is of that metric and that direction.
    """
    wanted = _words(monitor)
    fitting = [name for name in scores if wanted and _meant(name) == wanted and mode in _modes(wanted)]
    if not fitting:
        return None
    name = max(fitting, key=lambda name: ("best" in name.lower(), "val" in name.lower()))
    return name, scores[name] / 100 if "acc" in wanted and scores[name] > 1 else scores[name]


def _meant(name: str) -> frozenset[str]:
    words = _words(name)
    return words - {"error"} if len(words) > 1 else words  # best_mae_error


def _words(name: str) -> frozenset[str]:
    found = re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower())
    return frozenset(_SAME.get(word, word) for word in found if word not in _FILLERS)


def _modes(words: frozenset[str]) -> set[str]:
    return {"min"} if words & _MIN else {"max"} if words & _MAX else {"min", "max"}
