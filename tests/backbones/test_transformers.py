"""Backbones from transformers: small ones with random weights, saved to a folder; CPU, float32, no network."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import (
    AutoBackbone,
    AutoModel,
    AutoModelForImageClassification,
    BeitConfig,
    ConvNextConfig,
    DeiTConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    ResNetConfig,
    SwinConfig,
    ViTConfig,
)

from lit_transfer import create_backbone, freeze, load_weights
from lit_transfer.backbones import Backbone
from lit_transfer.modules import ImageClassifier
from lit_transfer.weights import WeightsError

SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
WIDTHS: dict[str, Any] = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1]}
# A configuration, the width of the features, and the strides of the stages.
FAMILIES: dict[str, tuple[Any, int, list[int]]] = {
    "vit": (ViTConfig(**SMALL, image_size=32, patch_size=8), 16, [8] * 4),
    "dinov2": (Dinov2Config(**SMALL, image_size=56, patch_size=14), 32, [14] * 4),
    "dinov2 with registers": (Dinov2WithRegistersConfig(**SMALL, image_size=56, patch_size=14), 32, [14] * 4),
    "beit": (BeitConfig(**SMALL, image_size=32, patch_size=8), 16, [8] * 4),
    "swin": (
        SwinConfig(embed_dim=8, depths=[1, 1, 1], num_heads=[1, 2, 2], image_size=32, window_size=2),
        32,
        [4, 8, 16],
    ),
    "convnext": (ConvNextConfig(**WIDTHS, image_size=64), 24, [4, 4, 8, 16, 32]),
    "resnet": (ResNetConfig(**WIDTHS, embedding_size=8), 24, [4, 4, 8, 16, 32]),
}


@pytest.fixture
def quiet() -> Any:
    """transformers' progress bars and notes on fresh heads are no warnings of ours."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def saved(tmp_path: Path, family: str, **processor: Any) -> tuple[nn.Module, str]:
    """Save a model with its classifier, and give its name."""
    torch.manual_seed(0)
    config = FAMILIES[family][0]
    model = AutoModelForImageClassification.from_config(config).eval()
    model.save_pretrained(tmp_path)
    if processor:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    return model, f"hf/{tmp_path}"


def size_of(family: str) -> int:
    return int(getattr(FAMILIES[family][0], "image_size", 64))


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_is_a_backbone_with_all_that_backbones_have(tmp_path: Path, family: str) -> None:
    model, name = saved(tmp_path, family)
    _, width, strides = FAMILIES[family]
    size = size_of(family)
    backbone = create_backbone(name, input_size=size).eval()
    images = torch.rand(2, 3, size, size)

    taken: list[torch.Tensor] = []
    model.classifier.register_forward_pre_hook(lambda module, args: taken.append(args[0]))
    model.classifier[-1].register_forward_pre_hook(lambda module, args: taken.append(args[0])) if isinstance(
        model.classifier, nn.Sequential
    ) else None
    model(images)
    torch.testing.assert_close(backbone(images), taken[-1].flatten(1))  # what its own classifier takes
    assert backbone.num_features == width
    assert backbone.load_report is not None
    assert backbone.load_report.coverage == 1

    stages = backbone.trace.stages
    parameters = dict(backbone.named_parameters())
    assert sorted(key for stage in stages for key in stage.parameters) == sorted(parameters)
    assert not any(name.startswith("classifier") for name in parameters)
    for until in range(len(stages)):
        freeze(backbone, [stage.name for stage in stages[:until]])
        frozen = {name for name, p in parameters.items() if not p.requires_grad}
        assert frozen == {key for stage in stages[:until] for key in stage.parameters}
        for parameter in parameters.values():
            parameter.requires_grad_(True)

    maps = backbone.forward_stages(images)
    assert list(backbone.strides.values()) == strides
    for stage, output in maps.items():
        side = size // backbone.strides[stage]
        assert output.shape == (2, backbone.channels[stage], side, side)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_further_channels_and_another_size(tmp_path: Path, family: str) -> None:
    model, name = saved(tmp_path, family)
    backbone = create_backbone(name, in_channels=4, input_size=64).eval()
    assert backbone(torch.rand(2, 4, 64, 64)).shape == (2, backbone.num_features)
    first = backbone.trace.first_conv
    assert first is not None
    kernel, own = backbone.get_parameter(f"{first}.weight"), model.get_parameter(f"{first}.weight")
    assert kernel.shape[1] == 4
    torch.testing.assert_close(kernel[:, :3], own * 3 / 4)  # as load_weights adapts it


@pytest.mark.usefixtures("quiet")
def test_random_weights_come_from_the_configuration(tmp_path: Path) -> None:
    model, name = saved(tmp_path, "vit")
    (tmp_path / "model.safetensors").unlink()
    backbone = create_backbone(name, weights=None)
    assert (backbone.weights, backbone.load_report, backbone.preprocessing.crop) == (None, None, 32)
    assert backbone.state_dict().keys() < model.state_dict().keys()
    with torch.device("meta"):
        assert all(p.is_meta for p in create_backbone(name, weights=None).parameters())
    with pytest.raises(WeightsError, match="cannot be read from the folder"):
        create_backbone(name)


def test_a_configuration_is_a_backbone_with_random_weights() -> None:
    config = FAMILIES["swin"][0]
    backbone = create_backbone(config, weights=None, in_channels=1).eval()
    assert (backbone.name, backbone.preprocessing.crop, config.num_channels) == ("SwinConfig", 32, 3)
    assert backbone(torch.rand(2, 1, 32, 32)).shape == (2, 32)
    with pytest.raises(ValueError, match=r"weights='DEFAULT': SwinConfig has no weights of its own. Pass weights=None"):
        create_backbone(config)


def test_a_family_with_two_kinds_of_classifier_is_built_from_its_configuration() -> None:
    backbone = create_backbone(DeiTConfig(**SMALL, image_size=32, patch_size=8), weights=None).eval()
    assert (backbone.trace.classifier, backbone.num_features) == ("classifier", 16)
    assert backbone(torch.rand(2, 3, 32, 32)).shape == (2, 16)


@pytest.mark.parametrize("family", ["vit", "swin", "convnext", "resnet", "beit"])
def test_a_model_that_gives_features_keeps_all_of_itself(family: str) -> None:
    torch.manual_seed(0)
    model, size = AutoModel.from_config(FAMILIES[family][0]).eval(), size_of(family)
    backbone = create_backbone(model, input_size=size).eval()
    images = torch.rand(2, 3, size, size)
    torch.testing.assert_close(backbone(images), model(images).pooler_output.flatten(1))
    assert backbone.state_dict().keys() == model.state_dict().keys()


def test_an_autobackbone_gives_its_map() -> None:
    model = AutoBackbone.from_config(FAMILIES["resnet"][0]).eval()
    backbone, images = create_backbone(model, input_size=64).eval(), torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(backbone(images), model(images).feature_maps[0].mean((2, 3)))


@pytest.mark.usefixtures("quiet")
def test_a_classifier_trains_on_it_and_is_loaded_again(tmp_path: Path) -> None:
    _, name = saved(tmp_path, "vit")
    module = ImageClassifier(name, num_classes=3).eval()
    images = torch.rand(2, 3, 32, 32)
    logits = module(images)
    assert logits.shape == (2, 3)
    torch.save({"state_dict": module.state_dict()}, tmp_path / "own.ckpt")
    other = ImageClassifier(name, weights=None, num_classes=3).eval()
    report = load_weights(other, tmp_path / "own.ckpt")
    assert report.coverage == 1
    torch.testing.assert_close(other.backbone(images), module.backbone(images))


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        (
            {"size": {"height": 40, "width": 40}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2},
            (40, 40, (0.5,) * 3, "bilinear"),
        ),
        (
            {"size": {"shortest_edge": 48}, "crop_size": {"height": 32, "width": 32}, "resample": 3},
            (48, 32, (0.485, 0.456, 0.406), "bicubic"),
        ),
        ({"size": {"shortest_edge": 56}, "crop_pct": 0.875, "resample": 3}, (64, 56, (0.485, 0.456, 0.406), "bicubic")),
        ({"size": 32, "do_normalize": False}, (32, 32, (0.0,) * 3, "bilinear")),
    ],
    ids=["vit", "dinov2", "convnext", "old"],
)
def test_the_preprocessing_is_that_of_the_image_processor(
    tmp_path: Path, processor: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    _, name = saved(tmp_path, "convnext", image_processor_type="ViTImageProcessor", **processor)
    made = create_backbone(name, weights=None).preprocessing
    assert (made.resize, made.crop, made.mean, made.interpolation) == expected


@pytest.mark.usefixtures("quiet")
def test_weights_that_lack_a_part_of_the_body_are_refused(tmp_path: Path) -> None:
    import safetensors.torch

    _, name = saved(tmp_path, "vit")
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    lost = next(key for key in state if "layer" in key and key.endswith("weight"))
    del state[lost]
    safetensors.torch.save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"lack 1 tensors of ViTForImageClassification, .* weights=None for random"):
        create_backbone(name)


@pytest.mark.usefixtures("quiet")
def test_weights_without_a_classifier_are_enough(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoModel.from_config(FAMILIES["dinov2"][0])
    model.save_pretrained(tmp_path)
    backbone = create_backbone(f"hf/{tmp_path}")
    assert torch.equal(backbone.get_parameter("dinov2.layernorm.weight"), model.layernorm.weight)
    token = backbone.get_parameter("dinov2.embeddings.cls_token")
    assert torch.equal(token, model.embeddings.cls_token)


def test_without_a_network_the_error_says_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(name: str, **options: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", unreachable)
    with pytest.raises(
        WeightsError, match=r"hf/org/vit cannot be fetched from https://huggingface.co/org/vit \(no rou"
    ):
        create_backbone("hf/org/vit")


def test_without_transformers_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"hf/... needs transformers: pip install 'lit-transfer\[transformers\]'"):
        create_backbone("hf/org/vit")
    assert isinstance(create_backbone("squeezenet1_1", weights=None), Backbone)


def test_what_is_no_image_model_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no such thing"}))
    with pytest.raises(ValueError, match=r"has no configuration that transformers knows: .*no such thing"):
        create_backbone(f"hf/{tmp_path}")


@pytest.mark.usefixtures("quiet")
def test_a_wrong_name_of_weights_is_told(tmp_path: Path) -> None:
    _, name = saved(tmp_path, "vit")
    with pytest.raises(ValueError, match="weights='IMAGENET': expected a name, an existing file, a URL"):
        create_backbone(name, weights="IMAGENET")


@pytest.mark.parametrize(
    ("name", "told"),
    [("hf/", "names nothing: expected hf/ORG/NAME"), ("hf/./nowhere", r"there is no folder '\./nowhere'")],
)
def test_a_name_of_nothing_is_refused_before_the_network_is_asked(name: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        create_backbone(name)
