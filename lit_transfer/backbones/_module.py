"""A module of the user's own as a backbone."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import nn

from lit_transfer.backbones import _timm
from lit_transfer.backbones._preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

__all__ = ["copy_containers", "preprocessing_of"]


def preprocessing_of(module: nn.Module, in_channels: int, input_size: int | None) -> Preprocessing:
    """Return the preprocessing that the module carries as `preprocessing` or as timm's models do, else ImageNet's.

    Raises:
        ValueError: The first convolution takes another number of channels than asked for.
    """
    conv = next((layer for layer in module.modules() if isinstance(layer, nn.Conv2d)), None)
    channels = in_channels if conv is None else conv.in_channels
    if in_channels not in {3, channels}:
        raise ValueError(
            f"in_channels={in_channels}: the first convolution of {type(module).__name__} takes {channels} channels."
        )
    if isinstance(own := getattr(module, "preprocessing", None), Preprocessing):
        return own.adapted(in_channels=channels, input_size=input_size)
    if isinstance(getattr(module, "pretrained_cfg", None), dict):
        return _timm.preprocessing_of(module, channels, input_size)
    return Preprocessing(256, 224, IMAGENET_MEAN, IMAGENET_STD).adapted(in_channels=channels, input_size=input_size)


def copy_containers(module: nn.Module, names: Sequence[str]) -> nn.Module:
    """Copy the modules that hold the named ones, so that these can be replaced; all else is shared, tensors too."""
    copied = _copy_container(module)
    for name in names:
        parent = copied
        for part in name.split(".")[:-1]:
            parent._modules[part] = _copy_container(parent.get_submodule(part))
            parent = parent.get_submodule(part)
    return copied


def _copy_container(module: nn.Module) -> nn.Module:
    copied = copy.copy(module)
    copied.__dict__["_modules"] = dict(module._modules)
    return copied
