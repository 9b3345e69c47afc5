"""Backbones and named weights from torchvision."""

from __future__ import annotations

import contextlib
import math
import sys
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model, get_model_weights

from lit_transfer.backbones._names import unknown_weights
from lit_transfer.backbones._preprocessing import Preprocessing
from lit_transfer.weights import WeightsError

__all__ = [
    "build_model",
    "count_parameters",
    "download",
    "find_weights",
    "list_names",
    "model_options",
    "named_weights",
    "preprocessing_of",
    "replace_first_conv",
]

# These normalise their input once more, from ImageNet's mean and std to [-1, 1], by indexing three channels.
_TRANSFORM_INPUT = ("googlenet", "inception_v3")
# Their position tables have the size of the image.
_SIZE_ARGUMENT = {"vit": "image_size", "maxvit": "input_size"}


def list_names() -> list[str]:
    """Names of torchvision's classification models."""
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def build_model(name: str, in_channels: int, input_size: int, num_outputs: int | None = None) -> nn.Module:
    """Build a model with random weights and its classifier; its first convolution still takes three channels."""
    options = model_options(name, in_channels, input_size, num_outputs)
    try:
        model: nn.Module = get_model(name, weights=None, **options)
    except (AssertionError, ValueError) as error:
        raise ValueError(f"{name} cannot be built for input_size={input_size}: {error}") from error
    return model


def model_options(name: str, in_channels: int, input_size: int, num_outputs: int | None) -> dict[str, Any]:
    """Give the arguments with which torchvision builds a model for images of this kind."""
    options: dict[str, Any] = {} if num_outputs is None else {"num_classes": num_outputs}
    if name in _TRANSFORM_INPUT:
        # The same whatever the weights, for a checkpoint is rebuilt without any. The auxiliary classifiers never run
        # in eval mode.
        options |= {"aux_logits": False, "init_weights": False, "transform_input": in_channels == 3}
    if size_argument := _SIZE_ARGUMENT.get(name.partition("_")[0]):
        options[size_argument] = (input_size, input_size) if size_argument == "input_size" else input_size
    return options


def named_weights(name: str) -> dict[str, WeightsEnum]:
    """Weights by their short names, such as IMAGENET1K_V1.

    Those without categories are left out: VGG-16's IMAGENET1K_FEATURES has no values for two layers of the body.
    """
    return {w.name: w for w in get_model_weights(name) if w.meta["categories"] is not None}


def find_weights(name: str, weights: str) -> WeightsEnum:
    """Return the weights that a name means: DEFAULT, IMAGENET1K_V1 or ResNet18_Weights.IMAGENET1K_V1.

    Raises:
        ValueError: There are none of this name.
    """
    known, enum = named_weights(name), get_model_weights(name)
    if weights == "DEFAULT":
        default: WeightsEnum = enum["DEFAULT"]
        return default
    short = weights.removeprefix(f"{enum.__name__}.")
    if short not in known:
        raise unknown_weights(weights, name, list(known))
    return known[short]


def count_parameters(name: str) -> int:
    """Number of parameters of a model with its ImageNet classifier, as its weights tell it; nothing is built."""
    count: int = get_model_weights(name)["DEFAULT"].meta["num_params"]
    return count


def preprocessing_of(name: str, weights: WeightsEnum, in_channels: int, input_size: int | None) -> Preprocessing:
    """Read the preprocessing that weights were made with, for this number of channels and this size."""
    preset = weights.transforms()
    mean, std = tuple(preset.mean), tuple(preset.std)
    if name in _TRANSFORM_INPUT and in_channels != 3:
        mean, std = (0.5,) * 3, (0.5,) * 3  # what transform_input would make of it
    made_with = Preprocessing(preset.resize_size[0], preset.crop_size[0], mean, std, preset.interpolation.value)
    return made_with.adapted(in_channels=in_channels, input_size=input_size)


def replace_first_conv(model: nn.Module, name: str | None, in_channels: int) -> None:
    """Make the first convolution take another number of channels; its random weights keep the scale of its output."""
    conv = None if name is None else model.get_submodule(name)
    if not isinstance(conv, nn.Conv2d) or conv.groups != 1:
        raise ValueError(f"in_channels={in_channels}: {type(model).__name__} begins with no ordinary convolution.")
    kernel = conv.weight.new_empty(conv.out_channels, in_channels, *conv.kernel_size)
    if not kernel.is_meta:
        kernel.normal_(std=float(conv.weight.detach().std()) * math.sqrt(conv.in_channels / in_channels))
    conv.in_channels, conv.weight = in_channels, nn.Parameter(kernel)


def download(weights: WeightsEnum) -> dict[str, Tensor]:
    """Return the state dict of named weights, from torch's cache or the network.

    Raises:
        WeightsError: The file cannot be fetched, is not the one that was published, or is damaged in the cache.
    """
    cached = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    was_cached = cached.exists()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # "Downloading: ...": an answer on stdout stays clean
            state: dict[str, Tensor] = weights.get_state_dict(
                progress=True, check_hash=True, map_location="cpu", weights_only=True
            )
    except Exception as error:
        wrong = f"{cached} is damaged: delete it" if was_cached else f"{weights} cannot be fetched from {weights.url}"
        raise WeightsError(
            f"{wrong} ({error}). Put the file there as {cached}, or give weights=PATH for a file that you have, or "
            "weights=None for random weights."
        ) from error
    return state
