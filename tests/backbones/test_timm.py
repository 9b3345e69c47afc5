from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from lit_transfer.backbones import create_backbone
from lit_transfer.backbones._memory import without_memory_on_meta
from lit_transfer.backbones._timm import build_model
from lit_transfer.stages import stages_of
from lit_transfer.weights import WeightsError

# Number of stages before the head.
FAMILIES = {
    "resnet18": 5,
    "convnext_atto": 5,
    "densenet121": 5,
    "efficientnet_b0": 6,
    "mobilenetv3_small_100": 6,
    "regnety_002": 5,
    "nf_resnet26": 5,
    "seresnet18": 5,
    "vit_tiny_patch16_224": 13,
    "deit_tiny_distilled_patch16_224": 13,
    "beit_base_patch16_224": 13,
    "mixer_s32_224": 9,
    "swin_s3_tiny_224": 5,
    "maxvit_rmlp_pico_rw_256": 5,
    "levit_128s": 4,
    "efficientformer_l1": 5,
    "mobilevit_xxs": 6,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_families_are_cut_into_stages(name: str) -> None:
    with torch.device("meta"):
        backbone = create_backbone(f"timm/{name}", weights=None, in_channels=1)
        upstream = without_memory_on_meta(build_model, name, None, 1, None)
    stages = stages_of(backbone)
    parameters = dict(backbone.named_parameters())
    assert sorted(key for stage in stages for key in stage.parameters) == sorted(parameters)
    assert len(stages) == FAMILIES[name]
    assert backbone.num_features == upstream.head_hidden_size
    heads = upstream.pretrained_cfg["classifier"]
    heads = (heads,) if isinstance(heads, str) else heads
    expected = [key for key in upstream.state_dict() if not key.startswith(tuple(f"{head}." for head in heads))]
    assert list(backbone.state_dict()) == expected


@pytest.mark.parametrize("name", ["convnext_atto", "test_vit", "deit_tiny_distilled_patch16_224"])
def test_features_are_those_of_timm(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    size = model.pretrained_cfg["input_size"][1]
    images = torch.rand(2, 3, size, size)
    backbone = create_backbone(model).eval()
    features = backbone(images)
    assert model(images).shape == (2, 1000)  # the caller's model is whole
    model.reset_classifier(0)
    torch.testing.assert_close(features, model(images))  # batch 2, float32, one thread, CPU
    features.sum().backward()


def test_a_child_named_stages_can_be_reached() -> None:
    backbone = create_backbone("timm/convnext_atto", weights=None)
    parameters = {name: torch.zeros_like(p) for name, p in backbone.named_parameters()}
    assert not torch.func.functional_call(backbone, parameters, (torch.rand(1, 3, 64, 64),)).any()
    assert backbone.get_parameter("stages.0.blocks.0.conv_dw.weight") is not None


def test_the_preprocessing_is_timms() -> None:
    made = create_backbone("timm/vit_tiny_patch16_224", weights=None).preprocessing
    assert (made.resize, made.crop, made.mean, made.interpolation) == (248, 224, (0.5,) * 3, "bicubic")


def test_the_size_is_given_to_models_that_need_it() -> None:
    vit = create_backbone("timm/vit_tiny_patch16_224", weights=None, input_size=64)
    assert vit.pos_embed.shape == (1, 17, 192)
    assert create_backbone("timm/resnet18", weights=None, input_size=64).preprocessing.crop == 64


def test_named_weights_are_loaded_by_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    build = timm.create_model

    def create(name: str, **options: Any) -> Any:
        asked.update(options, name=name)
        return build(name, **{**options, "pretrained": False})

    monkeypatch.setattr(timm, "create_model", create)
    backbone = create_backbone("timm/resnet18", weights="tv_in1k", in_channels=1)
    assert asked == {"name": "resnet18.tv_in1k", "pretrained": True, "in_chans": 1}
    assert backbone.weights == "tv_in1k"
    assert create_backbone("timm/resnet18").weights == "a1_in1k"
    assert create_backbone("timm/resnet18.gluon_in1k").weights == "gluon_in1k"


def test_without_a_network_the_error_says_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(name: str, **options: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(
        WeightsError, match=r"timm/resnet18.a1_in1k cannot be fetched from https://hug.*no route.*=PATH"
    ):
        create_backbone("timm/resnet18")


def test_a_file_is_loaded(tmp_path: Path) -> None:
    model = timm.create_model("resnet18", num_classes=4)
    torch.save({"model": model.state_dict()}, tmp_path / "best.pth")
    backbone = create_backbone("timm/resnet18", weights=str(tmp_path / "best.pth"))
    assert torch.equal(backbone.conv1.weight, model.conv1.weight)
    assert backbone.load_report is not None


def test_a_file_with_two_other_classifiers_is_loaded(tmp_path: Path) -> None:
    model = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=4)
    torch.save(model.state_dict(), tmp_path / "best.pth")
    backbone = create_backbone("timm/deit_tiny_distilled_patch16_224", weights=str(tmp_path / "best.pth"))
    assert torch.equal(backbone.norm.weight, model.norm.weight)


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("timm/resnt18", None, "'timm/resnt18' is not known: .* Nearest: timm/resnet18"),
        ("timm/resnt18", "DEFAULT", "'timm/resnt18' is not known: .* Nearest: timm/resnet18"),
        ("timm/resnet18", "a9_in1k", "weights='a9_in1k': .* Names for timm/resnet18: DEFAULT, a1_in1k, .* Nearest: a"),
        ("timm/resnet18.a9_in1k", "DEFAULT", "weights='a9_in1k'"),
        ("timm/resnet18.a9_in1k", None, "timm/resnet18.a9_in1k cannot be built"),
        ("timm/vit_base_patch8_224.", "x", "weights='x'"),
    ],
)
def test_a_wrong_name_is_told_with_the_nearest(name: str, weights: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_backbone(name, weights=weights)


def test_an_old_name_of_timms_takes_another_size() -> None:
    with pytest.warns(UserWarning, match="deprecated model name xception"):
        backbone = create_backbone("timm/xception", weights=None, input_size=96)
    assert (backbone.preprocessing.crop, backbone.num_features) == (96, 2048)
