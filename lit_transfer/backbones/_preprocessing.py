"""How an image becomes a backbone's input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from torchvision.transforms import v2

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Preprocessing"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop and normalise, as the weights of a backbone were made with; a plain value.

    Attributes:
        resize: Length in pixels of an image's shorter side before the crop.
        crop: Side in pixels of the square that is cut from the centre, which is what the backbone sees.
        mean: Of each channel, for values between 0 and 1.
        std: Of each channel, for values between 0 and 1.
        interpolation: `"nearest"`, `"bilinear"`, `"bicubic"` or `"lanczos"`.
    """

    resize: int
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(
                f"mean and std need one value for each channel, got {len(self.mean)} and {len(self.std)} values."
            )
        if not 0 < self.crop <= self.resize:
            raise ValueError(f"expected 0 < crop <= resize in pixels, got crop={self.crop} and resize={self.resize}.")
        if self.interpolation not in _INTERPOLATIONS:
            raise ValueError(f"interpolation={self.interpolation!r}: expected one of {', '.join(_INTERPOLATIONS)}.")

    @property
    def mode(self) -> str:
        """The PIL mode in which to open images: `"L"`, `"RGB"` or `"RGBA"`.

        Raises:
            ValueError: For another number of channels than 1, 3 or 4, which PIL has no mode for.
        """
        if (channels := len(self.mean)) not in _MODES:
            raise ValueError(
                f"in_channels={channels}: image files are opened with 1, 3 or 4 channels. Give tensors instead."
            )
        return _MODES[len(self.mean)]

    def opening(self) -> nn.Module:
        """Make the first step of a transform: to a tensor, which is resized in less time than a PIL image."""
        from torchvision.transforms import v2

        step: nn.Module = v2.ToPILImage() if self.interpolation == "lanczos" else v2.ToImage()  # only PIL has that one
        return step

    def cutting(self) -> v2.Compose:
        """Make the first part of `transform`, which ends with the pixels: uint8 (C, crop, crop), not yet normalised."""
        from torchvision.transforms import v2

        mode = v2.InterpolationMode(self.interpolation)
        resize = v2.Resize(self.resize, interpolation=mode, antialias=True)
        return v2.Compose([self.opening(), resize, v2.CenterCrop(self.crop), v2.ToImage()])

    def transform(self) -> v2.Compose:
        """Make the transform for evaluation: a PIL image of this mode, or a uint8 tensor (C, H, W).

        Returns:
            A transform that gives a float tensor (C, crop, crop), as the presets of torchvision and timm do but for
            the rounding in resized PIL images, by two of 255 levels at most.
        """
        import torch
        from torchvision.transforms import v2

        return v2.Compose(
            [
                *self.cutting().transforms,
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(self.mean), list(self.std)),
                v2.ToPureTensor(),
            ]
        )

    def adapted(self, *, in_channels: int | None = None, input_size: int | None = None) -> Preprocessing:
        """Give the same preprocessing for another number of channels or another size.

        One channel gets the average of mean and std; further channels get it too. With a size, the margin between
        resize and crop keeps its proportion.
        """
        crop = self.crop if input_size is None else input_size
        channels = len(self.mean) if in_channels is None else in_channels
        return Preprocessing(
            resize=round(self.resize * crop / self.crop),
            crop=crop,
            mean=_for_channels(self.mean, channels),
            std=_for_channels(self.std, channels),
            interpolation=self.interpolation,
        )

    def to_dict(self) -> dict[str, Any]:
        """Give a dictionary that JSON and `torch.load(weights_only=True)` read."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Make it from what `to_dict` gave."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


def _for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if channels == len(values):
        return values
    average = sum(values) / len(values)
    return (average,) * channels if channels < len(values) else (*values, *[average] * (channels - len(values)))
