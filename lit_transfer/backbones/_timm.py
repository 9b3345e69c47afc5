"""Backbones and named weights from timm, an optional dependency that is imported where it is used."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import torch
from torch import nn

from lit_transfer.backbones._names import unknown_backbone, unknown_weights
from lit_transfer.backbones._preprocessing import Preprocessing
from lit_transfer.weights import WeightsError

__all__ = ["build_model", "default_input_size", "find_weights", "list_names", "named_weights", "preprocessing_of"]


def _import_timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ImportError("timm/... needs timm: pip install 'lit-transfer[timm]'.") from error
    return timm


def list_names(pattern: str = "timm/*", *, if_installed: bool = False) -> list[str]:
    """Names of timm's models that match a shell pattern, each with `timm/` before it."""
    if if_installed and importlib.util.find_spec("timm") is None:
        return []
    return [f"timm/{name}" for name in _import_timm().list_models(pattern.removeprefix("timm/"))]


def named_weights(name: str) -> list[str]:
    """Tags of the pretrained weights that a model has, the one that timm recommends first."""
    model, timm = _split(name)[0], _import_timm()
    tags = [full.partition(".")[2] for full in timm.list_models(f"{model}.*", pretrained=True)]
    return sorted(tags, key=lambda tag: tag != timm.get_pretrained_cfg(model).tag)


def default_input_size(name: str) -> int:
    """Side in pixels of the images that a model takes by default."""
    size: int = _import_timm().get_pretrained_cfg(name.removeprefix("timm/")).input_size[1]
    return size


def find_weights(name: str, weights: str) -> str:
    """Return the tag that a name means: DEFAULT is the model's own, else the one that timm recommends.

    Raises:
        ValueError: There are no such weights, or none at all.
    """
    model, tag = _split(name)
    if not _import_timm().is_model(model):
        raise unknown_backbone(name, list_names())
    known = named_weights(name)
    wanted = tag if weights == "DEFAULT" else weights.removeprefix(f"{model}.")
    if not known or (wanted and wanted not in known):
        raise unknown_weights(weights if weights != "DEFAULT" else wanted or weights, name, known)
    return wanted or known[0]


def build_model(
    name: str, tag: str | None, in_channels: int, input_size: int | None, num_outputs: int | None = None
) -> nn.Module:
    """Build a model, with the weights of a tag or random ones.

    Raises:
        ValueError: timm has no such model, or it cannot be built for this size.
        WeightsError: The weights cannot be fetched.
    """
    timm = _import_timm()
    model, own_tag = _split(name)
    if not timm.is_model(model):
        raise unknown_backbone(name, list_names())
    full = f"{model}.{tag or own_tag}" if tag or own_tag else model
    options: dict[str, Any] = {"in_chans": in_channels}
    if num_outputs is not None:
        options["num_classes"] = num_outputs
    if input_size is not None and _has_fixed_size(model, full):
        options["img_size"] = input_size
    try:
        built: nn.Module = timm.create_model(full, pretrained=tag is not None, **options)
    except OSError as error:
        raise WeightsError(_not_fetched(full, timm.get_pretrained_cfg(full), error)) from error
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{name} cannot be built with {options}: {error}") from error
    return built


def _has_fixed_size(model: str, full: str) -> bool:
    """Tell whether a model is built for one size; old names have no configuration, the models behind them do."""
    timm = _import_timm()
    config = timm.get_pretrained_cfg(full)
    if config is None:
        return bool(timm.create_model(model).pretrained_cfg.get("fixed_input_size"))
    return bool(config.fixed_input_size)


def _not_fetched(full: str, cfg: Any, error: OSError) -> str:
    if cfg.hf_hub_id:
        from huggingface_hub.constants import HF_HUB_CACHE

        where, cache = f"https://huggingface.co/{cfg.hf_hub_id}", HF_HUB_CACHE
    else:
        where, cache = cfg.url, f"{torch.hub.get_dir()}/checkpoints"
    return (
        f"timm/{full} cannot be fetched from {where} ({error}). The cache is {cache}. Download it where there is a "
        "network and give weights=PATH, or weights=None for random weights."
    )


def preprocessing_of(model: nn.Module, in_channels: int, input_size: int | None) -> Preprocessing:
    """Read the preprocessing that a model of timm's carries, for this number of channels and this size."""
    config = _import_timm().data.resolve_data_config(pretrained_cfg=model.pretrained_cfg)
    crop = config["input_size"][1]
    made_with = Preprocessing(
        resize=math.floor(crop / config["crop_pct"]),
        crop=crop,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
    )
    return made_with.adapted(in_channels=in_channels, input_size=input_size)


def _split(name: str) -> tuple[str, str]:
    model, _, tag = name.removeprefix("timm/").partition(".")
    return model, tag
