"""What all tools are given: the same photos in the same order, the same backbone, the same head."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from lit_transfer import create_backbone

BATCH, WORKERS, RATE = 32, 2, 1e-2
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
Measure = Callable[[argparse.Namespace], dict[str, Any]]


class Clock:
    """Measures seconds, and those of the processor in this process and in workers that have ended."""

    def __init__(self) -> None:
        self._start, self._cpu = time.perf_counter(), os.times()

    def read(self) -> dict[str, float]:
        """Give both since the start."""
        now = os.times()
        return {"seconds": time.perf_counter() - self._start, "cpu": sum(now[:4]) - sum(self._cpu[:4])}


def backbone_of(arguments: argparse.Namespace) -> nn.Module:
    """Build the backbone with the weights that were asked for."""
    weights = arguments.weights
    if weights is not None and Path(weights).is_file():
        weights = str(Path(weights).resolve())
    torch.manual_seed(0)
    return create_backbone(arguments.backbone, weights=weights)


def photos(arguments: argparse.Namespace, split: str, *, shuffle: bool = False) -> DataLoader[Any]:
    """Load photos as the tutorials do it: ImageFolder, resized and cropped by Pillow, two workers."""
    transform = v2.Compose(
        [
            v2.Resize(256),
            v2.CenterCrop(224),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    dataset = ImageFolder(str(arguments.data / split), transform, is_valid_file=lambda path: path.endswith(".jpg"))
    generator = torch.Generator().manual_seed(0)
    return DataLoader(
        dataset, BATCH, shuffle=shuffle, generator=generator, num_workers=WORKERS, persistent_workers=True
    )


class Net(nn.Module):
    """A linear head on a backbone."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(int(backbone.num_features), 2)  # type: ignore[arg-type]  # ours

    def forward(self, images: Tensor) -> Tensor:
        """Give the logits (N, 2)."""
        answer: Tensor = self.head(self.backbone(images))
        return answer


class Plain(LightningModule):
    """A LightningModule as anybody writes it; `BackboneFinetuning` wants the optimizer without what is frozen."""

    def __init__(self, backbone: nn.Module, rate: float = RATE) -> None:
        super().__init__()
        self.backbone, self.rate = backbone, rate
        self.preprocessing = getattr(backbone, "preprocessing", None)
        self.head = nn.Linear(int(backbone.num_features), 2)  # type: ignore[arg-type]  # ours

    def forward(self, images: Tensor) -> Tensor:
        """Give the logits (N, 2)."""
        answer: Tensor = self.head(self.backbone(images))
        return answer

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Log and return the loss."""
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the share of right answers."""
        self.log("acc", (self(batch[0]).argmax(1) == batch[1]).float().mean(), batch_size=len(batch[1]))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Give the probabilities (N, 2)."""
        return self(batch[0]).softmax(1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Train what has a gradient."""
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=self.rate)


def trainer(**options: Any) -> Trainer:
    """Make a Trainer on the CPU that writes and shows nothing."""
    return Trainer(accelerator="cpu", devices=1, **QUIET, **options)


def accuracy(answers: Tensor, targets: Tensor) -> float:
    """Give the share of right answers."""
    return float((answers.argmax(1) == targets).float().mean())
