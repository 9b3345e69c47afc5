"""How well the classes are told apart by the features at each stage: measures, what they are worth, a picture."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

Vectors = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Measured:
    """What was found for one boundary. Accuracies are those on the validation images, from 0 to 1; None if not asked.

    Attributes:
        boundary: The last stage of the frozen front; "none" for a model without one.
        frozen: Parameters of the front.
        trains: Parameters above it, those of the head included.
        width: Length of the vectors.
        probe: Accuracy of a linear probe on them.
        knn: Accuracy of their nearest neighbours.
        finetuned: Accuracy after what lies above was fine-tuned.
        seconds: What the fine-tuning took, with the features that it needed.
    """

    boundary: str
    frozen: int
    trains: int
    width: int | None = None
    probe: float | None = None
    knn: float | None = None
    finetuned: float | None = None
    seconds: float | None = None


MEASURES = {"probe": "linear probe", "knn": "k-NN", "finetuned": "fine-tuned"}


def linear_probe(train: Vectors, labels: Labels, val: Vectors, val_labels: Labels) -> float:
    """Give the accuracy of a logistic regression on standardised features, learned from `train`.

    Its C is 0.1: on 244 photos of two classes with pretrained features, and on 1079 and on 100 digits of ten classes
    with random ones, this was within two standard errors of the best of 1e-4 to 10 at nearly every stage, and so was a
    C chosen by cross-validation, at twenty times the cost. Only the stem's 64 numbers had 4 % more from a larger C.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fitted = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=5000))
    # float64: in float32 its line search gives up early.
    return float(fitted.fit(train.astype(np.float64), labels).score(val.astype(np.float64), val_labels))


def nearest_neighbours(train: Vectors, labels: Labels, val: Vectors, val_labels: Labels, *, neighbours: int) -> float:
    """Give the accuracy of the majority among the nearest of `train` by cosine; all of them if they are fewer."""
    from sklearn.neighbors import KNeighborsClassifier

    fitted = KNeighborsClassifier(min(neighbours, len(train)), metric="cosine").fit(train, labels)
    return float(fitted.score(val, val_labels))


def largest_class(labels: Labels, val_labels: Labels) -> float:
    """Give the accuracy of always saying the class that is the most frequent one in training."""
    return float((val_labels == np.bincount(labels).argmax()).mean())


def standard_error(accuracy: float, images: int) -> float:
    """Give the binomial standard error of an accuracy."""
    return math.sqrt(accuracy * (1 - accuracy) / images)


def verdict(name: str, scores: Mapping[str, float], images: int) -> str:
    """Say at which boundary a measure is best, and which others are not told apart from it.

    Two are told apart if they differ by more than two standard errors of the difference of two binomials, which is
    careful: the images are the same, so that the true uncertainty is smaller. That the best of many is chosen on them
    is not accounted for.
    """
    best = max(scores, key=lambda boundary: scores[boundary])
    near = [other for other, score in scores.items() if other != best and not _apart(scores[best], score, images)]
    said = f"{name}: best at {best}, {scores[best]:.1%} ± {standard_error(scores[best], images):.1%}"
    if near:
        return f"{said}; not told apart from it: {', '.join(near)}"
    return said if len(scores) == 1 else f"{said}; every other one is worse"


def _apart(one: float, other: float, images: int) -> bool:
    return abs(one - other) > 2 * math.hypot(standard_error(one, images), standard_error(other, images))


def scores_of(rows: Sequence[Measured], measure: str) -> dict[str, float]:
    """Give the accuracies by one measure for the boundaries that have one."""
    return {row.boundary: value for row in rows if (value := getattr(row, measure)) is not None}


def plot_probes(rows: Sequence[Measured], title: str, *, images: int, baseline: float) -> Figure:
    """Draw accuracy against boundary, a line for each measure, with two standard errors around the linear probe.

    Args:
        rows: What was measured, from the stem to the last stage.
        title: Above the picture.
        images: How many it was measured on.
        baseline: What always saying the most frequent class gives.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(max(7.5, 4.0 + 0.55 * len(rows)), 4.0), layout="constrained")
    axes = figure.subplots()
    places = {row.boundary: place for place, row in enumerate(rows)}
    for (measure, label), marker in zip(MEASURES.items(), "os^", strict=True):
        scores = scores_of(rows, measure)
        if not scores:
            continue
        x, y = [places[boundary] for boundary in scores], list(scores.values())
        (line,) = axes.plot(x, y, marker=marker, label=label)
        if measure == "probe":
            errors = [2 * standard_error(score, images) for score in y]
            low, high = ([score + sign * error for score, error in zip(y, errors, strict=True)] for sign in (-1, 1))
            axes.fill_between(
                x, low, high, color=line.get_color(), alpha=0.15, linewidth=0, label="± 2 standard errors"
            )
    axes.axhline(baseline, color="0.5", linestyle=":", label="most frequent class")
    axes.set_xticks(range(len(rows)), list(places), rotation=45 if len(rows) > 8 else 0)
    axes.set(xlabel="frozen up to and including", ylabel="accuracy on validation images", title=title)
    axes.set_ylim(top=1.02)
    axes.grid(alpha=0.3)
    figure.legend(fontsize="small", loc="outside right upper")  # beside the lines, wherever they are
    return figure
