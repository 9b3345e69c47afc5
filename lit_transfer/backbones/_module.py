"""A module of the user's own as a backbone."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import nn

from lit_transfer.backbones import _timm, _transformers
from lit_transfer.backbones._preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

__all__ = ["copy_containers", "imagenet", "preprocessing_of"]


def preprocessing_of(module: nn.Module, in_channels: int, input_size: int | None) -> Preprocessing:
    """Return the preprocessing that the module carries as `preprocessing` or as timm's models do, else ImageNet's.

    Its own preprocessing tells the channels: a network with two inputs has a first convolution for one of them.

    Raises:
        ValueError: The preprocessing or the first convolution takes another number of channels than asked for.
    """
    own = getattr(module, "preprocessing", None)
    if isinstance(own, Preprocessing):
        channels, what = len(own.mean), "preprocessing"
    else:
        conv = next((layer for layer in module.modules() if isinstance(layer, nn.Conv2d)), None)
        channels, what = (in_channels if conv is None else conv.in_channels), "first convolution"
    if in_channels not in {3, channels}:
        raise ValueError(f"in_channels={in_channels}: the {what} of {type(module).__name__} takes {channels} channels.")
    if isinstance(own, Preprocessing):
        return own.adapted(input_size=input_size)
    if isinstance(getattr(module, "pretrained_cfg", None), dict):
        return _timm.preprocessing_of(module, channels, input_size)
    if input_size is None and _transformers.is_model(module):
        input_size = _transformers.size_of(module.config)
    return imagenet(channels, input_size)


def imagenet(channels: int, input_size: int | None) -> Preprocessing:
    """Return the usual preprocessing of ImageNet for this number of channels and this size."""
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
