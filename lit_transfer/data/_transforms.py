"""From an image to a backbone's input: what training adds to the backbone's own preprocessing."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from lit_transfer.backbones import Preprocessing
from lit_transfer.data._images import convert_image

Augment = Literal["default", "none", "trivial", "rand"] | Callable[[Any], Any]
AUGMENT_NAMES = ("default", "none", "trivial", "rand")
_POLICIES: dict[str, Callable[[], nn.Module]] = {"trivial": v2.TrivialAugmentWide, "rand": v2.RandAugment}


def training_transform(
    augment: Augment, preprocessing: Preprocessing, default: Sequence[nn.Module]
) -> Callable[[Tensor], Tensor]:
    """Build the transform of the training images.

    Args:
        augment: `"none"` for the transform of evaluation; `"default"`; `"trivial"` and `"rand"` for the default
            followed by TrivialAugmentWide or RandAugment; or a callable, see `FreeTransform`.
        preprocessing: That of the backbone.
        default: What `"default"` does to the pixels of an image; it ends with the backbone's image size.

    Raises:
        ValueError: If a policy cannot work on images with an alpha channel.
    """
    if callable(augment):
        return FreeTransform(augment, preprocessing)
    policy = [_POLICIES[augment]()] if augment in _POLICIES else []
    if policy and preprocessing.mode == "RGBA":
        raise ValueError(f"data.augment={augment!r} works on images of 1 or 3 channels; the backbone takes 4.")
    steps = v2.Compose([preprocessing.opening(), *default, *policy, *_to_input(preprocessing)])
    transform: Callable[[Tensor], Tensor] = preprocessing.transform() if augment == "none" else steps
    return transform


def resize_to_crop(preprocessing: Preprocessing) -> v2.Resize:
    """Build the step that brings any image to the backbone's size, its sides not kept in proportion."""
    size = (preprocessing.crop, preprocessing.crop)
    return v2.Resize(size, interpolation=v2.InterpolationMode(preprocessing.interpolation), antialias=True)


class FreeTransform:
    """A user's own transform, made to fit the backbone.

    It takes a PIL image. If it gives an image or an integer tensor, that is brought to the backbone's size where it
    has another, scaled and normalised. A float tensor is taken as it is.
    """

    def __init__(self, augment: Callable[[Any], Any], preprocessing: Preprocessing) -> None:
        self.augment = augment
        self.mode, self.open = preprocessing.mode, v2.ToPILImage()
        self.fit = v2.Compose([preprocessing.opening(), resize_to_crop(preprocessing), *_to_input(preprocessing)])
        self.shape = (len(preprocessing.mean), preprocessing.crop, preprocessing.crop)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Transform the pixels of an image, uint8 (C, H, W), to a float tensor of the backbone's size.

        Raises:
            TypeError: If the user's transform gives something other than an image or a tensor.
            ValueError: If its tensor has another shape than the backbone takes.
        """
        out = self.augment(self.open(pixels))
        if isinstance(out, Image.Image):
            out = v2.functional.pil_to_tensor(convert_image(out, self.mode))
        if not isinstance(out, Tensor):
            raise TypeError(f"data.augment must give a PIL image or a tensor; got {type(out).__name__}.")
        ready = out.is_floating_point()
        if tuple(out.shape) != (self.shape if ready else (self.shape[0], *out.shape[-2:])):
            expected = f"shape {self.shape}" if ready else f"{self.shape[0]} channels, (C, H, W)"
            raise ValueError(f"data.augment must give tensors of {expected}; got shape {tuple(out.shape)}.")
        return out if ready else self.fit(out)


def _to_input(preprocessing: Preprocessing) -> list[nn.Module]:
    scale = v2.ToDtype(torch.float32, scale=True)  # makes a new tensor of uint8, so that the rest may change it
    normalise = v2.Normalize(list(preprocessing.mean), list(preprocessing.std), inplace=True)
    return [v2.ToImage(), scale, normalise, v2.ToPureTensor()]
