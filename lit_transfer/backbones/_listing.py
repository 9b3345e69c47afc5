"""Which backbones there are, and what is known of them without building them."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from torchvision.models import get_model_weights

from lit_transfer.backbones import _hub_cache, _timm, _torchvision, _transformers

__all__ = ["BackboneInfo", "describe_backbones", "list_backbones"]


@dataclass(frozen=True)
class BackboneInfo:
    """What a source tells about a backbone.

    Attributes:
        name: What `create_backbone` takes.
        parameters: Number of parameters, that of its ImageNet classifier included; None where it would have to be
            built to know (timm, transformers).
        input_size: Side in pixels of the images that the default weights were made with.
        weights: Names of pretrained weights, which `create_backbone` takes as `weights`; the first is the default.
    """

    name: str
    parameters: int | None
    input_size: int
    weights: tuple[str, ...]


def list_backbones(pattern: str = "*") -> list[str]:
    """Names of backbones that match a shell pattern.

    Args:
        pattern: Such as `"resnet*"` for torchvision's, `"timm/convnext*"` for timm's, or `"hf/*"` for what lies in
            the cache of the Hugging Face hub, whose own list is not at hand without a network.

    Raises:
        ImportError: timm's or transformers' are asked for and it is not installed.
    """
    if pattern.startswith("hf/"):
        return _hub_cache.cached_names(pattern)
    if pattern.startswith("timm/"):
        return _timm.list_names(pattern)
    return [name for name in _torchvision.list_names() if fnmatchcase(name, pattern)]


def describe_backbones(pattern: str = "*") -> list[BackboneInfo]:
    """Tell what is known of the backbones that match a shell pattern, as `list_backbones` takes it; none is built."""
    sources = {"timm": _describe_timm, "hf": _describe_cached}
    describe = sources.get(pattern.partition("/")[0], _describe_torchvision)
    return [describe(name) for name in list_backbones(pattern)]


def _describe_torchvision(name: str) -> BackboneInfo:
    default = get_model_weights(name)["DEFAULT"]
    others = [short for short in _torchvision.named_weights(name) if short != default.name]
    size = default.transforms.keywords["crop_size"]
    return BackboneInfo(name, default.meta["num_params"], size, (default.name, *others))


def _describe_timm(name: str) -> BackboneInfo:
    return BackboneInfo(name, None, _timm.default_input_size(name), tuple(_timm.named_weights(name)))


def _describe_cached(name: str) -> BackboneInfo:
    folder = _hub_cache.folder_of(name)
    here = f"hf/{folder}"  # by its folder no network is asked
    config = _transformers.config_of(here)
    size = _transformers.preprocessing_of(here, config).crop
    return BackboneInfo(name, None, size, ("DEFAULT",) if folder and _hub_cache.has_weights(folder) else ())
