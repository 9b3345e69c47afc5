"""What timm tells of its weights is kept: preprocessing by tag, channels, other sizes; random weights, CPU, float32."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from lit_transfer import create_backbone


@pytest.mark.parametrize(
    "name", ["resnet18.a1_in1k", "resnet18.tv_in1k", "vit_tiny_patch16_224", "convnext_atto", "test_vit.r160_in1k"]
)
def test_a_tag_has_the_preprocessing_that_timm_gives_it(name: str) -> None:
    with torch.device("meta"):
        made = create_backbone(f"timm/{name}", weights=None).preprocessing
    config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    assert (made.crop, made.mean, made.std) == (config["input_size"][1], config["mean"], config["std"])
    assert made.interpolation == config["interpolation"]
    pixels = np.random.default_rng(0).integers(0, 256, (283, 310, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    theirs = timm.data.create_transform(**config)(image)
    # While resizing, PIL rounds otherwise than tensors are: by two of 255 values at most.
    torch.testing.assert_close(made.transform()(image), theirs, rtol=0, atol=2.01 / 255 / min(made.std))


def test_two_tags_of_one_architecture_differ() -> None:
    with torch.device("meta"):
        a1, tv = (create_backbone(f"timm/resnet18.{tag}", weights=None).preprocessing for tag in ("a1_in1k", "tv_in1k"))
    assert (a1.resize, a1.interpolation) == (235, "bicubic")
    assert (tv.resize, tv.interpolation) == (256, "bilinear")


@pytest.mark.parametrize(
    ("name", "size", "strides"),
    [
        ("swin_tiny_patch4_window7_224", 128, [4, 4, 8, 16, 32]),
        ("vit_tiny_patch16_224", 96, [16] * 13),
        ("resnet18", 96, [2, 4, 8, 16, 32]),
    ],
)
def test_other_sizes_and_channels(name: str, size: int, strides: list[int]) -> None:
    with torch.device("meta"):
        backbone = create_backbone(f"timm/{name}", weights=None, input_size=size, in_channels=4)
        features = backbone.eval()(torch.rand(2, 4, size, size))
    assert (backbone.preprocessing.crop, len(backbone.preprocessing.mean)) == (size, 4)
    assert features.shape == (2, backbone.num_features)
    assert list(backbone.strides.values()) == strides


def test_a_file_of_the_usual_size_and_channels_goes_into_another(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit")
    torch.save(model.state_dict(), tmp_path / "best.pth")
    backbone = create_backbone("timm/test_vit", weights=str(tmp_path / "best.pth"), input_size=96, in_channels=4)
    assert backbone.load_report is not None
    assert sorted(backbone.load_report.adapted) == ["patch_embed.proj.weight", "pos_embed"]
    assert torch.equal(backbone.norm.weight, model.norm.weight)
    assert backbone.eval()(torch.rand(2, 4, 96, 96)).isfinite().all()
