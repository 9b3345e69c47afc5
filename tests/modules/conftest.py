"""A small backbone and a small data set for the modules' tests; puts this folder on the path for `tasks_ddp`."""

import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parent))


class TinyData(LightningDataModule):
    """Images whose class is the quadrant that is bright."""

    def __init__(self, num_classes: int = 3, images: int = 24) -> None:
        super().__init__()
        self.class_names = [f"quadrant{number}" for number in range(num_classes)]
        self.num_classes = num_classes
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(images) % num_classes
        pictures = 0.1 * torch.randn(images, 3, 16, 16, generator=generator)
        for picture, label in zip(pictures, labels, strict=True):
            row, column = divmod(int(label), 2)
            picture[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 1
        self.dataset = TensorDataset(pictures, labels)
        self.class_counts = torch.bincount(labels).tolist()

    def _loader(self) -> DataLoader[Any]:
        return DataLoader(self.dataset, batch_size=8)

    train_dataloader = val_dataloader = test_dataloader = _loader


class TinyNumbers(LightningDataModule):
    """Images of an even grey; the targets are its brightness times 1000 plus 5000, and its darkness."""

    def __init__(self, images: int = 32) -> None:
        super().__init__()
        self.target_names = ["brightness", "darkness"]
        grey = torch.linspace(0, 1, images)[torch.randperm(images, generator=torch.Generator().manual_seed(0))]
        self.targets = torch.stack([5000 + 1000 * grey, -grey], dim=1)
        self.dataset = TensorDataset(grey.view(-1, 1, 1, 1).expand(-1, 3, 16, 16).clone(), self.targets)
        self.target_mean = self.targets.mean(0).tolist()
        self.target_std = self.targets.std(0, correction=0).tolist()

    def _loader(self) -> DataLoader[Any]:
        return DataLoader(self.dataset, batch_size=8)

    train_dataloader = val_dataloader = test_dataloader = _loader


class TinyLabels(LightningDataModule):
    """Images of three colours, each of which may be there."""

    def __init__(self, images: int = 32) -> None:
        super().__init__()
        self.label_names = ["red", "green", "blue"]
        generator = torch.Generator().manual_seed(0)
        self.targets = (torch.rand(images, 3, generator=generator) < torch.tensor([0.5, 0.25, 0.7])).float()
        pictures = 0.1 * torch.randn(images, 3, 16, 16, generator=generator)
        for picture, labels in zip(pictures, self.targets, strict=True):
            for number, label in enumerate(labels):  # a colour for each: pooled features know no place
                picture[number] += label
        self.train_dataset = TensorDataset(pictures, self.targets)
        self.label_counts = self.targets.sum(0).int().tolist()

    def _loader(self) -> DataLoader[Any]:
        return DataLoader(self.train_dataset, batch_size=8)

    train_dataloader = val_dataloader = test_dataloader = _loader


def tiny_backbone() -> nn.Module:
    """A convolutional net of two stages with a classifier of 7 classes."""
    torch.manual_seed(0)
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


@pytest.fixture
def data() -> TinyData:
    return TinyData()


@pytest.fixture
def numbers() -> TinyNumbers:
    return TinyNumbers()


@pytest.fixture
def labels() -> TinyLabels:
    return TinyLabels()


@pytest.fixture
def make_data() -> type[TinyData]:
    return TinyData


@pytest.fixture
def backbone() -> nn.Module:
    return tiny_backbone()


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    """Make a quiet Trainer that writes into the test's own folder."""

    def make(**arguments: Any) -> Trainer:
        quiet = {
            "max_epochs": 2,
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
        }
        return Trainer(default_root_dir=tmp_path, **{**quiet, **arguments})

    return make
