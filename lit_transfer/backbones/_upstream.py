"""Upstream models whole, with their classifiers and without memory: what a file is compared with."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase

import torch
from torch import nn

from lit_transfer.backbones import _timm, _torchvision, _transformers
from lit_transfer.backbones._memory import without_memory_on_meta
from lit_transfer.backbones._names import unknown_backbone
from lit_transfer.stages import Trace, trace_stages
from lit_transfer.weights import StateDict, plan_weights, torchvision_family

__all__ = ["guess_backbone", "upstream_model"]

_GUESSES = 4


def upstream_model(
    name: str, *, num_outputs: int | None = None, in_channels: int = 3, input_size: int | None = None
) -> tuple[nn.Module, Trace]:
    """Build the model that `create_backbone(name)` takes its backbone from, with its classifier, on the meta device.

    Args:
        name: A name of `list_backbones()`, `timm/NAME` where timm is installed, or `hf/ORG/NAME` or `hf/FOLDER` where
            transformers is.
        num_outputs: Rows of its classifier; as many as upstream by default.
        in_channels: Channels of the images.
        input_size: Side in pixels of the images; None for the size that the default weights were made with.

    Returns:
        The model, and its stages with the classifier's name.

    Raises:
        ValueError: The name is not known, or the model cannot be built for these channels or this size.
        ImportError: timm or transformers is asked for and not installed.
        WeightsError: The configuration of `hf/...` cannot be fetched.
    """
    with torch.device("meta"):
        if name.startswith("timm/"):
            model = without_memory_on_meta(_timm.build_model, name, None, in_channels, input_size, num_outputs)
            size = _timm.preprocessing_of(model, in_channels, input_size).crop
            return model, trace_stages(model, size, in_channels=in_channels)
        if name.startswith("hf/"):
            config = _transformers.config_of(name, in_channels, input_size)
            if num_outputs is not None:
                config.num_labels = num_outputs
            made = _transformers.preprocessing_of(name, config, in_channels, input_size)
            return _transformers.built(config, made, "auto")
        if name not in _torchvision.list_names():
            raise unknown_backbone(name, _torchvision.list_names() + _timm.list_names(if_installed=True))
        weights = _torchvision.find_weights(name, "DEFAULT")
        size = _torchvision.preprocessing_of(name, weights, in_channels, input_size).crop
        model = without_memory_on_meta(_torchvision.build_model, name, in_channels, size, num_outputs)
        trace = trace_stages(model, size)
        if in_channels != 3:
            _torchvision.replace_first_conv(model, trace.first_conv, in_channels)
        return model, trace


def guess_backbone(state_dict: StateDict) -> str | None:
    """Name the torchvision model that a state dict fills completely, whatever its classes and prefixes.

    Only the models of the family that the names tell are tried, those of the nearest size first.

    Args:
        state_dict: Names and tensors.

    Returns:
        A name of `list_backbones()`, or None.
    """
    family = torchvision_family(state_dict)
    names = [name for name in _torchvision.list_names() if any(fnmatchcase(name, pattern) for pattern in family)]
    elements = sum(math.prod(tensor.shape) for tensor in state_dict.values())
    names.sort(key=lambda name: abs(_torchvision.count_parameters(name) - elements))
    return next((name for name in names[:_GUESSES] if _fills(state_dict, name)), None)


def _fills(state_dict: StateDict, name: str) -> bool:
    with torch.device("meta"):
        size = _torchvision.preprocessing_of(name, _torchvision.find_weights(name, "DEFAULT"), 3, None).crop
        model = without_memory_on_meta(_torchvision.build_model, name, 3, size)
    return plan_weights(model, state_dict).complete
