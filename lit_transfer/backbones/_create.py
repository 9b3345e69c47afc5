"""From a name or a module to a backbone."""

from __future__ import annotations

import contextlib

from torch import nn

from lit_transfer.backbones._backbone import Backbone, cut_classifier
from lit_transfer.backbones._memory import EmptyTensorsOnMeta
from lit_transfer.backbones._names import is_file_or_url, unknown_backbone
from lit_transfer.backbones._torchvision import (
    build_model,
    download,
    find_weights,
    list_names,
    preprocessing_of,
    replace_first_conv,
)
from lit_transfer.stages import trace_stages

__all__ = ["create_backbone"]


def create_backbone(
    name_or_module: str | nn.Module,
    *,
    weights: str | None = "DEFAULT",
    in_channels: int = 3,
    input_size: int | None = None,
    classifier: str | None = "auto",
) -> Backbone:
    """Make a backbone."""
    if isinstance(name_or_module, nn.Module):
        raise NotImplementedError
    if name_or_module.startswith("timm/"):
        raise NotImplementedError
    if name_or_module not in list_names():
        raise unknown_backbone(name_or_module, list_names())
    return _from_torchvision(name_or_module, weights, in_channels, input_size, classifier)


def _from_torchvision(
    name: str,
    weights: str | None,
    in_channels: int,
    input_size: int | None,
    classifier: str | None,
    *,
    meta: bool = False,
) -> Backbone:
    from_file = weights is not None and is_file_or_url(weights)
    chosen = find_weights(name, "DEFAULT" if weights is None or from_file else weights)
    preprocessing = preprocessing_of(name, chosen, in_channels, input_size)
    with EmptyTensorsOnMeta() if meta else contextlib.nullcontext():
        model = build_model(name, in_channels=in_channels, input_size=preprocessing.crop)
    if meta:
        model = model.to("meta")
    trace = trace_stages(model, preprocessing.crop, classifier=classifier)
    if in_channels != 3 and trace.first_conv:
        replace_first_conv(model, trace.first_conv, in_channels)
    report = None
    if weights is not None:
        from lit_transfer.weights import load_weights

        source = weights if from_file else download(chosen)
        report = load_weights(model, source, head=trace.stages[-1].modules)
    cut_classifier(model, trace)
    return Backbone(
        model,
        trace,
        preprocessing=preprocessing,
        name=name,
        weights=weights if weights is None or from_file else str(chosen),
        load_report=report,
    )
