"""Pretrained architectures without their classifiers, cut into stages: from libraries and of one's own."""

from lit_transfer.backbones._backbone import Backbone
from lit_transfer.backbones._create import create_backbone
from lit_transfer.backbones._hub_cache import nothing_cached
from lit_transfer.backbones._listing import BackboneInfo, describe_backbones, list_backbones
from lit_transfer.backbones._names import unknown_backbone
from lit_transfer.backbones._preprocessing import Preprocessing
from lit_transfer.backbones._upstream import guess_backbone, upstream_model

__all__ = [
    "Backbone",
    "BackboneInfo",
    "Preprocessing",
    "create_backbone",
    "describe_backbones",
    "guess_backbone",
    "list_backbones",
    "nothing_cached",
    "unknown_backbone",
    "upstream_model",
]
