"""Backbones from Hugging Face's transformers, an optional dependency that is imported where it is used."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lit_transfer.backbones._memory import without_memory_on_meta
from lit_transfer.backbones._preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from lit_transfer.stages import Trace, trace_stages
from lit_transfer.weights import WeightsError

__all__ = [
    "adapted",
    "build_model",
    "built",
    "config_of",
    "download",
    "has_no_classifier",
    "image_model_types",
    "is_config",
    "is_model",
    "preprocessing_of",
    "size_of",
]

_PREFIX = "hf/"
# What a model normalises its input with where its processor does not do it.
_UNCHANGED = ((0.0,) * 3, (1.0,) * 3)
# PIL's numbers.
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


def _import_transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError("hf/... needs transformers: pip install 'lit-transfer[transformers]'.") from error
    return transformers


def is_model(value: object) -> bool:
    """Whether a value is a model of transformers, which is not imported to know it."""
    transformers = sys.modules.get("transformers")
    return transformers is not None and isinstance(value, transformers.PreTrainedModel)


def is_config(value: object) -> bool:
    """Whether a value is a configuration of transformers, which is not imported to know it."""
    transformers = sys.modules.get("transformers")
    return transformers is not None and isinstance(value, transformers.PretrainedConfig)


def has_no_classifier(model: nn.Module) -> bool:
    """Whether a model of transformers gives features: the last Linear of its pooling makes no logits."""
    return is_model(model) and "ForImageClassification" not in type(model).__name__


def config_of(name: str, in_channels: int | None = None, input_size: int | None = None) -> Any:
    """Read the configuration of `hf/ORG/NAME` or `hf/FOLDER`, for this number of channels and this size, or its own.

    Raises:
        ImportError: transformers is not installed.
        ValueError: What is there is no configuration of an image model.
        WeightsError: It cannot be fetched.
    """
    where = _where(name)
    try:
        config = _import_transformers().AutoConfig.from_pretrained(where)
    except OSError as error:
        raise WeightsError(_not_fetched(name, error)) from error
    except (KeyError, ValueError) as error:
        raise ValueError(f"{name} has no configuration that transformers knows: {error}") from error
    return adapted(config, in_channels, input_size)


def adapted(config: Any, in_channels: int | None, input_size: int | None) -> Any:
    """Copy a configuration for this number of channels and this size."""
    config = type(config).from_dict(config.to_dict())
    if in_channels not in {None, getattr(config, "num_channels", 3)}:
        if not hasattr(config, "num_channels"):
            raise ValueError(f"in_channels={in_channels}: {type(config).__name__} has no num_channels.")
        config.num_channels = in_channels
        if stem := getattr(config, "stem_channels", None):  # HGNetV2 reads its channels there
            config.stem_channels = [in_channels, *stem[1:]]
    if input_size is not None and hasattr(config, "image_size"):
        config.image_size = input_size if isinstance(config.image_size, int) else [input_size, input_size]  # Hiera
    return config


def build_model(config: Any) -> nn.Module:
    """Build the model that classifies images, with random weights; where there is none, the one that gives features.

    Raises:
        ValueError: transformers has neither, or it cannot be built with these numbers.
    """
    transformers = _import_transformers()
    known = type(config) in transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    if config.architectures is None:  # transformers 5 looks into it where there are two classes (DeiT, LeViT)
        config.architectures = []
    make = transformers.AutoModelForImageClassification if known else transformers.AutoModel
    try:
        model: nn.Module = make.from_config(config)
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"no model can be built from this {type(config).__name__}: {error}") from error
    return model.float().train()


def built(config: Any, preprocessing: Preprocessing, classifier: str | None) -> tuple[nn.Module, Trace]:
    """Build the model and cut it into stages; what gives features keeps all of itself, unless a classifier is named."""
    model = without_memory_on_meta(build_model, config)
    classifier = None if classifier == "auto" and has_no_classifier(model) else classifier
    channels = len(preprocessing.mean)
    return model, trace_stages(model, preprocessing.crop, in_channels=channels, classifier=classifier)


def image_model_types() -> frozenset[str]:
    """Types of models, as in `config.json`, that classify images or are backbones.

    Raises:
        ImportError: transformers is not installed.
    """
    _import_transformers()
    from transformers.models.auto import modeling_auto as auto

    return frozenset(auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES) | frozenset(
        auto.MODEL_FOR_BACKBONE_MAPPING_NAMES
    )


def download(name: str, model: nn.Module, heads: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the weights of `hf/ORG/NAME` or `hf/FOLDER`, from transformers' cache or the network.

    transformers itself reads them, for it knows under which names its models were saved in the past.

    Args:
        name: As `create_backbone` takes it.
        model: Of the class to read them into; it stays as it is.
        heads: Names of the modules that may be without weights.

    Raises:
        WeightsError: They cannot be fetched, or lack something of the model outside its heads.
    """
    try:
        read, info = type(model).from_pretrained(  # type: ignore[attr-defined]  # a PreTrainedModel
            _where(name), output_loading_info=True, ignore_mismatched_sizes=False
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsError(_not_fetched(name, error)) from error
    if lacking := [key for key in info["missing_keys"] if not key.startswith(tuple(f"{head}." for head in heads))]:
        raise WeightsError(
            f"the weights of {name} lack {len(lacking)} tensors of {type(model).__name__}, {sorted(lacking)[0]} for "
            "one: they are of another model. Give weights=PATH, or weights=None for random weights."
        )
    state: dict[str, Tensor] = read.state_dict()
    return state


def preprocessing_of(
    name: str, config: Any, in_channels: int | None = None, input_size: int | None = None
) -> Preprocessing:
    """Read the preprocessing from `preprocessor_config.json`; ImageNet's where there is none."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        values, _ = ImageProcessingMixin.get_image_processor_dict(_where(name))
    except OSError:
        values = {}
    return _read(values, size_of(config)).adapted(in_channels=in_channels, input_size=input_size)


def size_of(config: Any) -> int:
    """Side in pixels of the images that a configuration is for; 224 where it tells none."""
    size = getattr(config, "image_size", None) or 224
    return int(size if isinstance(size, int) else max(size))


def _read(values: dict[str, Any], size: int) -> Preprocessing:
    resize = _side(values.get("size")) or size
    crop = _side(values.get("crop_size")) if values.get("do_center_crop", "crop_size" in values) else None
    if crop is None and (kept := values.get("crop_pct")) and resize < 384:  # ConvNeXt: the size is that of the crop
        resize, crop = round(resize / kept), resize
    crop = crop or resize
    mean, std = values.get("image_mean") or IMAGENET_MEAN, values.get("image_std") or IMAGENET_STD
    if values.get("do_normalize") is False:
        mean, std = _UNCHANGED
    way = _RESAMPLE.get(values.get("resample", 2), "bilinear")
    return Preprocessing(max(resize, crop), crop, tuple(mean), tuple(std), way)


def _side(size: Any) -> int | None:
    """Read 224, {"height": 224, "width": 224} or {"shortest_edge": 224}."""
    if isinstance(size, dict):
        size = size.get("shortest_edge") or size.get("height")
    return int(size) if size else None


def _where(name: str) -> str:
    """Return the folder, or the name on the hub.

    Raises:
        ValueError: It is neither.
    """
    where = name.removeprefix(_PREFIX)
    if not where:
        raise ValueError(f"backbone={name!r} names nothing: expected hf/ORG/NAME or hf/FOLDER.")
    if where.startswith((".", "/", "~")) and not Path(where).is_dir():
        raise ValueError(f"backbone={name!r}: there is no folder {where!r}; a name on the hub has the form ORG/NAME.")
    return where


def _not_fetched(name: str, error: Exception) -> str:
    where = _where(name)
    if Path(where).is_dir():
        return f"{name} cannot be read from the folder {where}: {error}"
    return (
        f"{name} cannot be fetched from https://huggingface.co/{where} ({error}). Download it where there is a network "
        "and give hf/FOLDER, or weights=PATH."
    )
