"""Probabilities that mean what they say: temperature scaling, its measures, and the picture of both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassCalibrationError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["CalibrationError", "Reliability", "fit_temperature", "plot_reliability", "reliability"]

_BINS = 15  # as in Guo et al. 2017, and torchmetrics


class CalibrationError(MulticlassCalibrationError):
    """The expected calibration error of logits (N, num_classes), whatever their range.

    torchmetrics takes a batch whose values all lie between 0 and 1 for probabilities, which logits may do too.
    """

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Take in the logits and the true classes of a batch."""
        super().update(preds.float().softmax(-1), target)


@dataclass(frozen=True)
class Reliability:
    """How well the probabilities of the classes that were answered fit how often they were right.

    Attributes:
        nll: Negative log-likelihood of the true classes, a mean over images, in nats.
        ece: Expected calibration error, between 0 and 1: the mean distance of confidence and accuracy over 15 bins of
            equal width, weighted with the images in each.
        accuracy: Share of right answers.
        confidences: Mean confidence in each bin; NaN where it is empty.
        accuracies: Share of right answers in each bin; NaN where it is empty.
        shares: Share of the images in each bin.
    """

    nll: float
    ece: float
    accuracy: float
    confidences: tuple[float, ...]
    accuracies: tuple[float, ...]
    shares: tuple[float, ...]


def reliability(logits: Tensor, labels: Tensor) -> Reliability:
    """Measure the calibration of logits (N, num_classes) for true classes (N,)."""
    logits = logits.double()
    confidence, answer = logits.softmax(-1).max(-1)
    right = (answer == labels).double()
    metric = CalibrationError(logits.shape[-1], n_bins=_BINS)
    metric.update(logits, labels)
    place = (confidence * _BINS).long().clamp(max=_BINS - 1)
    count = torch.zeros(_BINS, dtype=torch.float64).index_add(0, place, torch.ones_like(confidence))
    confidences, accuracies = (count.new_zeros(_BINS).index_add(0, place, each) / count for each in (confidence, right))
    return Reliability(
        F.cross_entropy(logits, labels).item(),
        metric.compute().item(),
        right.mean().item(),
        tuple(confidences.tolist()),
        tuple(accuracies.tolist()),
        tuple((count / len(labels)).tolist()),
    )


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Find the temperature T above 0 for which softmax(logits / T) fits the true classes best.

    It minimises the negative log-likelihood with LBFGS, in float64. No answer changes its class.
    Source: Guo et al. 2017, On Calibration of Modern Neural Networks, arXiv:1706.04599, section 4.2.

    Args:
        logits: Of images that the model did not learn from, (N, num_classes).
        labels: Their true classes (N,), as numbers.

    Raises:
        ValueError: There is no best temperature: every answer is right, so that a smaller one is always better; or the
            logits tell nothing of the classes, so that a larger one is; or they are not finite.
    """
    # Copies: tensors of inference mode, in which a Trainer validates, take part in no backward pass.
    logits, labels = logits.detach().double().cpu().clone(), labels.detach().cpu().clone()
    _check(logits, labels)
    logarithm = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [logarithm], max_iter=200, tolerance_grad=1e-10, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits / logarithm.exp(), labels)
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        return loss.item()

    optimizer.step(closure)  # type: ignore[no-untyped-call]  # nor this
    return logarithm.exp().item()


def _check(logits: Tensor, labels: Tensor) -> None:
    if not len(labels) or not torch.isfinite(logits).all():
        raise ValueError("No temperature fits: there are no images, or the model's answers are not finite numbers.")
    true = logits.gather(-1, labels[:, None]).squeeze(-1)
    if bool((true >= logits.max(-1).values).all()):
        raise ValueError(
            f"No temperature fits: all {len(labels)} validation images are answered rightly, so that full certainty "
            "would fit best. Calibrate on more images, which the model did not learn from."
        )
    # The slope of the likelihood in 1 / T where that is 0.
    if true.mean() <= logits.mean():
        raise ValueError(
            "No temperature fits: the model's answers are no better than equal probabilities for all classes on these "
            "images. Is it trained, and are the classes in the same order?"
        )


def plot_reliability(found: dict[str, Reliability]) -> Figure:
    """Draw reliability diagrams side by side, and below each how many images fall where.

    Args:
        found: Title of each diagram -> what it shows.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4 * len(found), 5.2), layout="constrained")
    rows: Any = figure.subplots(2, len(found), sharex=True, sharey="row", squeeze=False, height_ratios=[3, 1])
    for column, (title, measured) in enumerate(found.items()):
        _draw(rows[0, column], rows[1, column], measured)
        rows[0, column].set(title=f"{title}: ECE {measured.ece:.3f}, NLL {measured.nll:.3f}", ylim=(0, 1))
        rows[1, column].set(xlabel="confidence", xlim=(0, 1))
    rows[0, 0].set(ylabel="share of right answers")
    rows[1, 0].set(ylabel="share of images")
    rows[0, 0].legend(loc="upper left", fontsize="small")
    return figure


def _draw(axes: Axes, below: Axes, measured: Reliability) -> None:
    left = [number / _BINS for number in range(_BINS)]
    options: dict[str, Any] = {"width": 1 / _BINS, "align": "edge", "edgecolor": "white"}
    axes.bar(left, measured.accuracies, color="tab:blue", alpha=0.6, label="right answers", **options)
    axes.plot(measured.confidences, measured.accuracies, "o", color="tab:red", markersize=4, label="mean confidence")
    axes.plot([0, 1], [0, 1], color="0.5", linestyle=":", label="as they should be")
    below.bar(left, measured.shares, color="0.6", **options)
