"""A module and data as users write them, which count what is read and what the frozen front computes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, RandomSampler, WeightedRandomSampler

from lit_transfer.callbacks import FinetuningSchedule


class Counter:
    """Counts in all processes. It says nothing of its value to those who ask what data depends on."""

    def __init__(self) -> None:
        self.value = torch.zeros(1, dtype=torch.long).share_memory_()

    def __reduce__(self) -> Any:
        return Counter, ()


READS = Counter()


class SaveAt(Callback):
    """Saves a checkpoint behind a step."""

    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


class Images(Dataset[Any]):
    """Random images with their class, the same ones each time unless `noise` is drawn."""

    def __init__(self, count: int, first: int = 0, noise: float = 0.0, side: int = 8) -> None:
        self.count, self.first, self.noise, self.side = count, first, noise, side
        self.classes = ["a", "b", "c"]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        READS.value.add_(1)
        generator = torch.Generator().manual_seed(self.first + index)
        image = torch.randn(3, self.side, self.side, generator=generator)
        if self.noise:
            image += self.noise * torch.randn(())
        return {"label": (self.first + index) % 3, "image": image, "name": f"{index}.jpg"}


class Module(LightningModule):
    """An encoder of two stages and a head with dropout; the loaders are asked for in `configure_optimizers`."""

    def __init__(self, optimizer: Any = torch.optim.SGD) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.optimizer, self.val_losses, self.computed = optimizer, [], 0
        self.example_input_array = torch.zeros(2, 3, 8, 8)
        self.encoder = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU()),
            nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.ReLU()),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(16, 3))
        self.encoder[0][0].register_forward_hook(self.count)

    def count(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.computed += len(output)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))

    def loss(self, batch: Any) -> Tensor:
        return F.cross_entropy(self(batch["image"]), batch["label"])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss, batch_size=8)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss = self.loss(batch)
        self.log("val_loss", loss, sync_dist=True, batch_size=len(batch["label"]))
        self.val_losses.append(loss.item())

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch["image"])

    def configure_optimizers(self) -> Any:
        assert self.trainer.estimated_stepping_batches
        return self.optimizer(self.parameters(), lr=0.05)


TRAIN, VAL = 37, 21


def train_loader(kind: str = "shuffle", workers: int = 0, **images: Any) -> DataLoader[Any]:
    options: dict[str, Any] = {"shuffle": True}
    if kind == "weighted":
        options = {"sampler": WeightedRandomSampler(torch.arange(1.0, TRAIN + 1), 40)}
    if kind == "own generator":
        options |= {"generator": torch.Generator().manual_seed(5), "persistent_workers": workers > 0}
    if kind == "persistent":
        options = {"sampler": RandomSampler(range(TRAIN)), "persistent_workers": True}
    return DataLoader(Images(TRAIN, **images), 8, drop_last=True, num_workers=workers, **options)


def val_loader(workers: int = 0, **images: Any) -> DataLoader[Any]:
    return DataLoader(Images(VAL, first=100, **images), batch_size=8, num_workers=workers)


def trainer(*callbacks: Callback, folder: Path | None = None, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "max_epochs": 3,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        "callbacks": list(callbacks),
    }
    return Trainer(**defaults | options)


def furthest(one: nn.Module, other: nn.Module) -> float:
    """The largest difference between two modules' states."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max((a.double() - b.double()).abs().max().item() for a, b in pairs)


LOOKED = 2 * 4  # samples that a run draws to look at, of both sets
TWICE = TRAIN + VAL  # samples that are drawn twice when both sets are filled, having fewer than 64 each


def probe() -> FinetuningSchedule:
    """Train the head alone."""
    return FinetuningSchedule("linear_probe")


Fit = Callable[..., Module]
