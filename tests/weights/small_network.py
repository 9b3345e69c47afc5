"""A small network to load into, and its values."""

import torch
from torch import Tensor, nn


def network(classes: int = 4, channels: int = 3, width: int = 6) -> nn.Module:
    """A small convolutional network with the features of a real one: norms, blocks, a head."""
    torch.manual_seed(classes)
    model = nn.Sequential()
    model.stem = nn.Sequential(nn.Conv2d(channels, width, 3, bias=False), nn.BatchNorm2d(width))
    model.layer1 = nn.Sequential(nn.Conv2d(width, width, 3), nn.BatchNorm2d(width), nn.ReLU())
    model.layer2 = nn.Sequential(nn.Conv2d(width, 2 * width, 3), nn.BatchNorm2d(2 * width), nn.ReLU())
    model.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.fc = nn.Linear(2 * width, classes)
    return model


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
