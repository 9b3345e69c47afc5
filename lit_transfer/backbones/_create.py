"""From a name or a module to a backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from lit_transfer.backbones import _module, _timm, _torchvision, _transformers
from lit_transfer.backbones._backbone import Backbone, cut_classifier
from lit_transfer.backbones._memory import without_memory_on_meta
from lit_transfer.backbones._names import is_file_or_url, unknown_backbone, unknown_weights
from lit_transfer.backbones._preprocessing import Preprocessing
from lit_transfer.stages import Trace, trace_stages
from lit_transfer.weights import Source, load_weights

__all__ = ["create_backbone"]


def create_backbone(
    name_or_module: str | nn.Module | Any,
    *,
    weights: str | Path | None = "DEFAULT",
    in_channels: int = 3,
    input_size: int | None = None,
    classifier: str | None = "auto",
) -> Backbone:
    """Make a backbone: a pretrained model without its classifier, cut into stages.

    Under `torch.device("meta")` and with `weights=None` it is built without memory.

    Args:
        name_or_module: A name of `list_backbones()`, `timm/NAME` where timm is installed, `hf/ORG/NAME` or `hf/FOLDER`
            (such as `hf/./vit`) where transformers is, a configuration of transformers, or a module. A module keeps
            its own classifier: the backbone has copies of the containers on the way to it, and shares all else, so
            that training one trains the other. A model of transformers that only gives features keeps all of itself,
            and gives its `pooler_output`.
        weights: `"DEFAULT"` for the pretrained weights that the source recommends, the name of others (a timm tag), a
            path or URL of any file that `load_weights` reads, or None for random ones. A module stays as it is with
            `"DEFAULT"` and with None. A configuration has none by default: pass None or a file.
        in_channels: Channels of the images. Other than 3, the first convolution is made anew and the pretrained
            kernels are adapted to it. A module's own first convolution decides.
        input_size: Side in pixels of the images; None for the size that the weights were made with.
        classifier: Dotted name of the module that makes the logits; `"auto"` finds it; None if there is none, so that
            nothing is cut.

    Returns:
        The backbone, in training mode, on the CPU.

    Raises:
        ValueError: A name is not known, or the model cannot be built for these channels or this size.
        ImportError: timm or transformers is asked for and not installed.
        WeightsError: The weights cannot be fetched, read, or do not fit.
    """
    _check(in_channels=in_channels, input_size=input_size)
    weights = None if weights is None else str(weights)
    if isinstance(name_or_module, nn.Module):
        return _from_module(name_or_module, weights, in_channels, input_size, classifier)
    if _transformers.is_config(name_or_module):
        return _from_config(name_or_module, weights, in_channels, input_size, classifier)
    if not isinstance(name_or_module, str):
        raise TypeError(f"expected the name of a backbone or a module, got {type(name_or_module).__name__}.")
    if torch.get_default_device().type == "meta" and weights is not None:
        raise ValueError(f"weights={weights!r} cannot be loaded on the meta device: pass weights=None.")
    if name_or_module.startswith("timm/"):
        return _from_timm(name_or_module, weights, in_channels, input_size, classifier)
    if name_or_module.startswith("hf/"):
        return _from_transformers(name_or_module, weights, in_channels, input_size, classifier)
    if name_or_module not in _torchvision.list_names():
        raise unknown_backbone(name_or_module, _torchvision.list_names() + _timm.list_names(if_installed=True))
    return _from_torchvision(name_or_module, weights, in_channels, input_size, classifier)


def _check(**numbers: int | None) -> None:
    for name, value in numbers.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name}={value!r}: expected a positive integer.")


def _from_torchvision(
    name: str, weights: str | None, in_channels: int, input_size: int | None, classifier: str | None
) -> Backbone:
    from_file = is_file_or_url(weights, list(_torchvision.named_weights(name)))
    chosen = _torchvision.find_weights(name, "DEFAULT" if weights is None or from_file else weights)
    preprocessing = _torchvision.preprocessing_of(name, chosen, in_channels, input_size)
    model = without_memory_on_meta(_torchvision.build_model, name, in_channels, preprocessing.crop)
    trace = trace_stages(model, preprocessing.crop, classifier=classifier)
    if in_channels != 3:
        _torchvision.replace_first_conv(model, trace.first_conv, in_channels)
    if weights is None or from_file:
        return _assemble(model, trace, preprocessing, name, weights, weights)
    return _assemble(model, trace, preprocessing, name, str(chosen), _torchvision.download(chosen))


def _from_timm(
    name: str, weights: str | None, in_channels: int, input_size: int | None, classifier: str | None
) -> Backbone:
    from_file = is_file_or_url(weights, _timm.named_weights(name))
    named = None if weights is None or from_file else _timm.find_weights(name, weights)
    model = without_memory_on_meta(_timm.build_model, name, named, in_channels, input_size)
    preprocessing = _timm.preprocessing_of(model, in_channels, input_size)
    trace = trace_stages(model, preprocessing.crop, in_channels=in_channels, classifier=classifier)
    return _assemble(model, trace, preprocessing, name, named or weights, weights if from_file else None)


def _from_transformers(
    name: str, weights: str | None, in_channels: int, input_size: int | None, classifier: str | None
) -> Backbone:
    from_file = is_file_or_url(weights, [])
    if weights not in {None, "DEFAULT"} and not from_file:
        raise unknown_weights(str(weights), name, [])
    config = _transformers.config_of(name, in_channels, input_size)
    preprocessing = _transformers.preprocessing_of(name, config, in_channels, input_size)
    model, trace = _transformers.built(config, preprocessing, classifier)
    if weights is None or from_file:
        return _assemble(model, trace, preprocessing, name, weights, weights)
    heads = trace.stages[-1].modules if trace.classifier is not None else ()
    return _assemble(model, trace, preprocessing, name, weights, _transformers.download(name, model, heads))


def _from_config(
    config: Any, weights: str | None, in_channels: int, input_size: int | None, classifier: str | None
) -> Backbone:
    kind = type(config).__name__
    if weights is not None and not is_file_or_url(weights, []):
        raise ValueError(f"weights={weights!r}: {kind} has no weights of its own. Pass weights=None, or a path or URL.")
    config = _transformers.adapted(config, in_channels, input_size)
    size = input_size or _transformers.size_of(config)
    preprocessing = _module.imagenet(in_channels, size)
    model, trace = _transformers.built(config, preprocessing, classifier)
    return _assemble(model, trace, preprocessing, kind, weights, weights)


def _from_module(
    module: nn.Module, weights: str | None, in_channels: int, input_size: int | None, classifier: str | None
) -> Backbone:
    from_file = weights not in {None, "DEFAULT"}
    preprocessing = _module.preprocessing_of(module, in_channels, input_size)
    classifier = None if classifier == "auto" and _transformers.has_no_classifier(module) else classifier
    trace = trace_stages(module, preprocessing.crop, in_channels=len(preprocessing.mean), classifier=classifier)
    model = _module.copy_containers(module, trace.stages[-1].modules if trace.classifier else ())
    source = weights if from_file else None
    return _assemble(model, trace, preprocessing, type(module).__name__, source, source)


def _assemble(
    model: nn.Module, trace: Trace, preprocessing: Preprocessing, name: str, weights: str | None, source: Source | None
) -> Backbone:
    """Load a file or state dict while the classifier is still there to take its share of it, then cut."""
    heads = trace.stages[-1].modules if trace.classifier is not None else ()
    report = None if source is None else load_weights(model, source, head=heads)
    cut_classifier(model, trace)
    return Backbone(model, trace, preprocessing=preprocessing, name=name, weights=weights, load_report=report)
