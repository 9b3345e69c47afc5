"""Ants and bees: real photos, real features, a quick probe on them, and all four files beside it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lit_transfer.export import export
from lit_transfer.modules import ImageClassifier
from lit_transfer.predictor import Predictor, find_images

FEW = 12  # of each class, to learn from
FILES = {"onnx": "onnx", "torch_export": "pt2", "safetensors": "safetensors", "torchvision": "pth"}


@pytest.fixture(scope="module")
def probe(real: Path) -> ImageClassifier:
    """SqueezeNet's genuine features under a linear layer that was fitted to a few photos."""
    weights = real / "weights" / "squeezenet1_0_imagenet_frozen_HamzaElhmd.pt"
    module = ImageClassifier("squeezenet1_0", weights=str(weights), class_names=["ants", "bees"]).eval()
    folder = real / "data" / "hymenoptera_data" / "train"
    paths = [path for name in ("ants", "bees") for path in find_images(folder / name)[:FEW]]
    predictor = Predictor(module)
    with torch.no_grad():
        features = torch.cat([module.backbone(predictor._read(path)[None]) for path in paths])
        labels = torch.eye(2).repeat_interleave(FEW, dim=0) - 0.5
        scale = features.norm(dim=1).mean()
        kernel = features @ features.T / scale**2 + 0.1 * torch.eye(len(paths))
        module.head.weight.copy_(8 * (features.T / scale**2 @ torch.linalg.solve(kernel, labels)).T)
    return module


@pytest.mark.parametrize("to", FILES)
def test_ants_and_bees(to: str, probe: ImageClassifier, real: Path, tmp_path: Path) -> None:
    folder = real / "data" / "hymenoptera_data" / "val"
    photos: list[Path] = [path for name in ("ants", "bees") for path in find_images(folder / name)[:4]]
    report = export(probe, tmp_path / f"net.{FILES[to]}", to=to, images=photos)  # type: ignore[arg-type]
    assert (report.comparison.images, report.comparison.same) == (8, 8)
    assert report.comparison.difference < 1e-4
    answers: Tensor = torch.tensor([answer.probability for answer in Predictor(probe)(photos)])
    assert answers.max() - answers.min() > 0.05  # they tell photos apart: equal answers would prove nothing
