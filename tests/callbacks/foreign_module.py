"""A LightningModule as users write them, that knows nothing of this library; for the tests of callbacks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from lit_transfer import param_groups


class Foreign(LightningModule):
    """Four units under `encoder` with norm and dropout, and a classifier named otherwise than `head`."""

    def __init__(
        self,
        optimizer: Callable[[list[dict[str, Any]]], Optimizer] = lambda g: torch.optim.SGD(g, momentum=0.9),
        scheduler: Callable[[Optimizer], Any] | None = None,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.example_input_array = torch.zeros(2, 3, 8, 8)
        self.encoder = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
            nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(dropout)),
            nn.Sequential(nn.Conv2d(8, 10, 3, 2, 1, bias=False), nn.BatchNorm2d(10), nn.ReLU()),
        )
        self.classifier = nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.encoder(x).mean((2, 3)))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]), sync_dist=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])

    def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(param_groups(self, 0.05, 0.01))
        return optimizer if self.make_scheduler is None else ([optimizer], [self.make_scheduler(optimizer)])


class Batches:
    """A loader that keeps its place: four batches of 8, the same ones in every epoch."""

    def __init__(self, count: int = 4) -> None:
        self.count, self.place = count, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Any:
        start, self.place = self.place, 0
        for number in range(start, self.count):
            self.place = (number + 1) % self.count
            yield batch(number)

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


def batch(number: int, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(size, 3, 8, 8, generator=generator) + 1, torch.randint(0, 3, (size,), generator=generator)


def val_loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(*batch(99)), 8)


def trainer(*callbacks: Callback, folder: Path | None = None, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "max_epochs": 3,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 1,
        "default_root_dir": folder,
        "callbacks": list(callbacks),
    }
    return Trainer(**defaults | options)
