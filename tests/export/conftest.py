"""A small trained module for each task, whose answers differ from image to image."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lit_transfer.modules import ImageClassifier, ImageRegressor, MultiLabelClassifier, TransferModule

TASKS: dict[str, tuple[type[TransferModule], dict[str, Any]]] = {
    "class": (ImageClassifier, {"class_names": ["ants", "bees", "wasps"]}),
    "multilabel": (MultiLabelClassifier, {"label_names": ["RBC", "WBC"]}),
    "number": (ImageRegressor, {"target_names": ["age", "height"], "target_mean": [40, 1.7], "target_std": [9, 0.1]}),
}
Make = Callable[..., Any]


def tiny_backbone() -> nn.Module:
    """A convolutional net of two stages with a classifier of 7 classes."""
    return nn.Sequential(
        OrderedDict(
            stem=nn.Conv2d(3, 8, 3, stride=2),
            norm=nn.BatchNorm2d(8),
            act=nn.ReLU(),
            block=nn.Conv2d(8, 16, 3, stride=2),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            fc=nn.Linear(16, 7),
        )
    )


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def make() -> Make:
    """Make a module: `make("class")`, `make("number", "resnet18", head="mlp")`; the tiny backbone if none is named."""

    def made(task: str, backbone: str | None = None, **arguments: Any) -> TransferModule:
        cls, names = TASKS[task]
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            options = {"weights": None, "input_size": 32, **names, **arguments}
            module = cls(backbone or tiny_backbone(), **options)
            for parameter in module.head.parameters():
                parameter.normal_()
            for layer in module.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.running_mean.normal_(0, 0.1)
                    layer.running_var.uniform_(0.5, 2)
            if task == "multilabel":
                module.thresholds.copy_(torch.tensor([0.25, 0.75]))
        return module.eval()

    return made


@pytest.fixture(scope="session")
def pixels() -> torch.Tensor:
    """Five images as a deployer has them: uint8 (5, 3, 32, 32)."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (5, 3, 4, 4), generator=generator).float()
    return nn.functional.interpolate(coarse, size=32, mode="bilinear").to(torch.uint8)


def answers(module: TransferModule, pixels: torch.Tensor) -> torch.Tensor:
    """What the module answers, its images made ready as in evaluation."""
    ready = module.preprocessing.transform().transforms[-3:]  # scaled and normalised
    for step in ready:
        pixels = step(pixels)
    with torch.no_grad():
        return module.predict_step(pixels)


@pytest.fixture(scope="session")
def answer() -> Callable[[TransferModule, torch.Tensor], torch.Tensor]:
    return answers
