"""Losses of classes and of labels: cross entropy and focal loss, with weights, for whole and for mixed targets."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

ClassLossName = Literal["cross_entropy", "focal"]
LabelLossName = Literal["bce", "focal"]


def check_focal(loss: str, known: tuple[str, ...], gamma: float) -> float | None:
    """Give the exponent that a loss asked for by name has, None where it is not the focal one.

    Raises:
        ValueError: If no loss has this name, or the exponent is below 0.
    """
    if loss not in known:
        raise ValueError(f"loss={loss!r} is unknown; known are {list(known)}.")
    if not 0 <= gamma < float("inf"):
        raise ValueError(f"focal_gamma={gamma}: expected a number of at least 0; 2 is that of the paper.")
    return gamma if loss == "focal" else None


class ClassLoss(nn.CrossEntropyLoss):
    """Cross entropy of the softmax, or focal loss, as a mean over images that their classes' weights enter.

    A target is the number of a class, or shares of all classes that add up to 1, as mixing images gives them. A share
    counts as so much of an image of that class, in the mean too, where torch would divide by the number of images.

    The focal loss (Lin et al. 2017, "Focal Loss for Dense Object Detection", arXiv:1708.02002, equations 4 and 5)
    multiplies the cross entropy of each class by (1 - p) ** gamma, p being its probability: what is right already
    counts less. Its alpha are the weights. The paper has it for a sigmoid; here p is that of the softmax.
    """

    def __init__(
        self, *, weight: Tensor | None = None, label_smoothing: float = 0.0, focal_gamma: float | None = None
    ) -> None:
        """Choose the loss.

        Args:
            weight: A weight for each class (num_classes,).
            label_smoothing: Share of the target's probability that is spread over all classes.
            focal_gamma: Exponent of the focal loss, which is cross entropy with 0; None for cross entropy.
        """
        super().__init__(weight=weight, label_smoothing=label_smoothing)
        self.focal_gamma = focal_gamma

    def forward(self, answer: Tensor, target: Tensor) -> Tensor:
        """Give the loss of logits (N, num_classes) and targets (N,) or (N, num_classes)."""
        if self.focal_gamma is None and not target.is_floating_point():
            return super().forward(answer, target)
        logits = answer.float()
        shares = target.float() if target.is_floating_point() else F.one_hot(target, logits.shape[-1]).float()
        weight = logits.new_ones(logits.shape[-1]) if self.weight is None else self.weight.float()
        smoothed = (1 - self.label_smoothing) * shares + self.label_smoothing / logits.shape[-1]
        logs = logits.log_softmax(-1)
        missed = 1.0 if not self.focal_gamma else (1 - logs.exp()).clamp(min=1e-12) ** self.focal_gamma
        loss: Tensor = -(weight * smoothed * missed * logs).sum() / (weight * shares).sum()
        return loss


class LabelFocalLoss(nn.Module):
    """Focal loss of each label (torchvision's), as a mean over images and labels.

    Without alpha, in whose place `pos_weight` stands: an image that has a label counts that many times in its loss.
    With `gamma=0` it is `nn.BCEWithLogitsLoss(pos_weight=...)`.
    """

    pos_weight: Tensor | None

    def __init__(self, *, gamma: float, pos_weight: Tensor | None = None) -> None:
        """Choose the exponent, and a weight for each label (num_labels,)."""
        super().__init__()
        self.gamma = gamma
        self.register_buffer("pos_weight", pos_weight)

    def forward(self, answer: Tensor, target: Tensor) -> Tensor:
        """Give the loss of logits and targets, both (N, num_labels)."""
        loss: Tensor = sigmoid_focal_loss(answer.float(), target.float(), alpha=-1, gamma=self.gamma)
        if self.pos_weight is not None:
            loss = loss * torch.lerp(torch.ones_like(loss), self.pos_weight.to(loss), target.to(loss))
        return loss.mean()
