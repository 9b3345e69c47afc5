"""Mixing the images of a training batch in pairs, and their targets with them: mixup and cutmix."""

from typing import Any

from torch import Tensor
from torchvision.transforms import v2


class Mixing:
    """Mixes each image with the one before it in the batch, as torchvision does, by one share for all of the batch.

    Mixup (Zhang et al. 2017, arXiv:1710.09412) adds the two images up; cutmix (Yun et al. 2019, arXiv:1905.04899) puts
    a rectangle of one into the other. With both, each batch draws one of the two. What is drawn comes from torch's own
    generator of the CPU, whose state `TolerantRestore` keeps.
    """

    def __init__(self, mixup: float, cutmix: float) -> None:
        """Choose the parameters of both Beta distributions that shares are drawn from; 0 leaves one out.

        Raises:
            ValueError: If one is below 0.
        """
        for name, value in (("mixup", mixup), ("cutmix", cutmix)):
            if not 0 <= value < float("inf"):
                raise ValueError(
                    f"{name}={value}: expected the parameter alpha of its Beta distribution, above 0, or 0 for none."
                )
        self.mixup, self.cutmix = mixup, cutmix

    def __call__(self, images: Tensor, target: Tensor, num_outputs: int | None) -> tuple[Tensor, Tensor]:
        """Give the mixed images (N, C, H, W), and targets (N, num_outputs) of shares.

        Args:
            images: Images (N, C, H, W).
            target: Numbers of classes (N,), or labels (N, num_outputs).
            num_outputs: Number of classes or labels.
        """
        steps: list[Any] = [v2.MixUp(alpha=self.mixup, num_classes=num_outputs)] if self.mixup else []
        steps += [v2.CutMix(alpha=self.cutmix, num_classes=num_outputs)] if self.cutmix else []
        if steps:
            images, target = (v2.RandomChoice(steps) if len(steps) > 1 else steps[0])(images, target)
        return images, target
