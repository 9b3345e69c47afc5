"""Layouts of residual networks and their like beyond the zoo's."""

import pytest
import torch
import torchvision
from layout_parts import numbered
from torch import nn
from zoo_resnets import resnet

from lit_transfer.weights import load_weights, plan_weights


@pytest.mark.parametrize("name", ["alexnet", "vgg11_bn"])
def test_the_imagenet_example_with_its_features_in_parallel(name: str) -> None:
    """It wraps only the features of these two: their parameters are few, and the classifier's are many."""
    with torch.device("meta"):
        source = torchvision.models.get_model(name, weights=None)
        model = torchvision.models.get_model(name, weights=None, num_classes=7)
    source.features = nn.DataParallel(source.features)
    plan = plan_weights(model, {"epoch": 3, "arch": name, "state_dict": source.state_dict(), "best_acc1": 56.5})
    assert plan.problems == ()
    assert plan.head == ("classifier.6",)
    for entry in plan.of("load"):
        assert entry.source == entry.name.replace("features.", "features.module.")
    assert {entry.name for entry in plan.of("fresh")} == {"classifier.6.weight", "classifier.6.bias"}


def test_a_numbered_model_is_filled_from_a_named_file() -> None:
    source = resnet()
    model = nn.Sequential(*list(resnet(3).children())[:-1])
    load_weights(model, source.state_dict())
    assert all(torch.equal(t, numbered(source)[n]) for n, t in model.state_dict().items())
