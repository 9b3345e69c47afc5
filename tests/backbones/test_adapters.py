"""A module with two inputs or a dictionary for an output, through an adapter of the user's own; CPU, float32."""

import pytest
import torch
from torch import Tensor, nn

from lit_transfer import create_backbone, freeze
from lit_transfer.backbones import Preprocessing
from lit_transfer.modules import ImageClassifier


class TwoStreams(nn.Module):
    """Somebody's network: takes colour and depth, and gives a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.colour, self.depth = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(1, 8, 4, 4)
        self.layer1 = nn.Sequential(nn.Conv2d(8, 16, 2, 2), nn.BatchNorm2d(16), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(16, 32, 2, 2), nn.BatchNorm2d(32), nn.ReLU())

    def forward(self, colour: Tensor, depth: Tensor) -> dict[str, Tensor]:
        features = self.layer2(self.layer1(self.colour(colour) + self.depth(depth)))
        return {"quality": depth.mean((1, 2, 3)), "features": features}


class Adapter(nn.Module):
    """All that its user writes: images with four channels go in, the features come out."""

    def __init__(self) -> None:
        super().__init__()
        self.net = TwoStreams()
        self.preprocessing = Preprocessing(72, 64, mean=(0.5,) * 4, std=(0.25,) * 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images[:, :3], images[:, 3:])["features"]


def test_an_adapter_makes_a_backbone_of_it() -> None:
    torch.manual_seed(0)
    adapter = Adapter().eval()
    backbone, images = create_backbone(adapter, classifier=None).eval(), torch.rand(2, 4, 64, 64)
    assert (backbone.num_features, len(backbone.preprocessing.mean)) == (32, 4)
    torch.testing.assert_close(backbone(images), adapter(images).mean((2, 3)))
    assert backbone.strides == {"stem": 4, "stage1": 8, "stage2": 16}
    assert [tuple(m.shape[1:]) for m in backbone.forward_stages(images).values()] == [
        (8, 16, 16),
        (16, 8, 8),
        (32, 4, 4),
    ]
    owned = sorted(name for stage in backbone.trace.stages for name in stage.parameters)
    assert owned == sorted(dict(adapter.named_parameters()))
    with pytest.raises(ValueError, match="in_channels=2: the preprocessing of Adapter takes 4 channels"):
        create_backbone(adapter, in_channels=2, classifier=None)


def test_a_classifier_learns_on_it() -> None:
    torch.manual_seed(0)
    module = ImageClassifier(create_backbone(Adapter(), classifier=None), num_classes=3)
    freeze(module.backbone, ["stem"])
    assert not module.backbone.get_parameter("net.depth.weight").requires_grad
    logits = module(torch.rand(2, 4, 64, 64))
    assert logits.shape == (2, 3)
    logits.sum().backward()
    assert module.backbone.get_parameter("net.colour.weight").grad is None
