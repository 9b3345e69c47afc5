"""Pictures of what a stage found out, each a figure of its own; pyplot would keep it alive and may open a window."""

import math
from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

_MOST_TARGETS = 16  # beyond, a scatter is too small to read


def plot_confusion(matrix: Tensor, class_names: list[str] | None) -> Figure:
    """Draw a confusion matrix (num_classes, num_classes) of counts, rows being the true classes."""
    size = max(4.0, 0.5 * len(matrix) + 2)
    figure = Figure(figsize=(size, size), layout="constrained")
    metric = MulticlassConfusionMatrix(len(matrix))
    metric.plot(matrix, ax=figure.subplots(), add_text=len(matrix) <= 30, labels=class_names)
    return figure


def plot_scatter(answers: Tensor, targets: Tensor, titles: Sequence[str]) -> Figure:
    """Draw predicted over true values, one square for each target, the first 16 of more.

    Args:
        answers: Predicted values (N, number of targets).
        targets: True values of the same shape.
        titles: Text above each square.
    """
    shown = min(len(titles), _MOST_TARGETS)
    columns = math.ceil(math.sqrt(shown))
    rows = math.ceil(shown / columns)
    figure = Figure(figsize=(max(4.5, 3.6 * columns), max(4.5, 3.8 * rows)), layout="constrained")
    for number, title in enumerate(titles[:shown]):
        axes = figure.add_subplot(rows, columns, number + 1)
        true, predicted = targets[:, number], answers[:, number]
        ends = [min(true.min().item(), predicted.min().item()), max(true.max().item(), predicted.max().item())]
        axes.plot(ends, ends, color="grey", linewidth=1)
        axes.scatter(true.numpy(), predicted.numpy(), s=14, alpha=max(0.15, min(0.8, 60 / len(true))), linewidths=0)
        margin = 0.05 * (ends[1] - ends[0]) or 1.0
        limits = (ends[0] - margin, ends[1] + margin)  # with as many bins, the same ticks on both sides
        axes.set(title=title, xlabel="true", ylabel="predicted", aspect="equal", xlim=limits, ylim=limits)
        axes.locator_params(nbins=6)
    return figure


def plot_thresholds(
    thresholds: Sequence[float], f1: Sequence[float], counts: Sequence[int], names: Sequence[str]
) -> Figure:
    """Draw a row for each label: its F1 as a bar, its threshold as a mark, and how many images have it.

    Args:
        thresholds: Probability from which on each label is given.
        f1: F1 of each label at its threshold.
        counts: Number of images that have each label.
        names: Names of the labels.
    """
    figure = Figure(figsize=(7, 1.6 + 0.35 * len(names)), layout="constrained")
    axes = figure.subplots()
    rows = range(len(names))
    axes.barh(rows, f1, height=0.6, color="tab:blue", alpha=0.5, label="F1")
    axes.plot(thresholds, rows, "D", color="tab:red", markersize=6, label="threshold")
    axes.axvline(0.5, color="grey", linewidth=0.8, linestyle=":")
    axes.set_yticks(rows, [f"{name} ({count})" for name, count in zip(names, counts, strict=True)])
    axes.set(xlim=(0, 1), ylim=(len(names) - 0.5, -0.5), title="F1 and threshold by label (images that have it)")
    figure.legend(loc="outside lower center", ncols=2)
    return figure
