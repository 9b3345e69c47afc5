"""A small network, its hand-written training loop, and a LightningModule that goes on with it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda params: SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "adam": lambda params: Adam(params, lr=0.01),
    "adamw": lambda params: AdamW(params, lr=0.01),
}
BATCH = 16


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(64, 6, generator=generator), torch.randint(0, 3, (64,), generator=generator))


def net(classes: int = 3, norm: Callable[[int], nn.Module] = nn.BatchNorm1d) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), norm(8), nn.ReLU(), nn.Linear(8, classes))


def train(network: nn.Module, optimizer: Optimizer, scheduler: StepLR, epochs: int) -> None:
    """The loop that people write by hand."""
    images, labels = data().tensors
    for _ in range(epochs):
        for start in range(0, len(images), BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(
                network(images[start : start + BATCH]), labels[start : start + BATCH]
            ).backward()
            optimizer.step()
        scheduler.step()


class Foreign(LightningModule):
    """Knows nothing of this library. Its head is a parameter group of its own, before the body's."""

    def __init__(
        self, optimizer: str = "sgd", *, groups: int = 2, classes: int = 3, wrap: Any = None, norm: Any = nn.BatchNorm1d
    ) -> None:
        super().__init__()
        self.net = net(classes, norm) if wrap is None else wrap(net(classes, norm))
        self.optimizer, self.groups = optimizer, groups
        self.seen: list[tuple[int, int]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen.append((self.current_epoch, self.global_step))
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_acc", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        answer: Tensor = self.net(batch[0])
        return answer

    def configure_optimizers(self) -> Any:
        parameters = list(self.net.parameters())
        groups = parameters if self.groups == 1 else [{"params": parameters[4:]}, {"params": parameters[:4]}]
        optimizer = OPTIMIZERS[self.optimizer](groups)
        return [optimizer], [StepLR(optimizer, 2)]


def trainer(epochs: int, *callbacks: Any, **arguments: Any) -> Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return Trainer(max_epochs=epochs, accelerator="cpu", callbacks=list(callbacks), **{**quiet, **arguments})


def loader() -> DataLoader[Any]:
    return DataLoader(data(), batch_size=BATCH)


def by_hand(
    path: Path, kind: str, epochs: int = 3, norm: Any = nn.BatchNorm1d, **more: Any
) -> tuple[nn.Module, Optimizer, StepLR]:
    """Train for some epochs and save as people do, from DataParallel and with their misspellings."""
    torch.manual_seed(5)
    network = net(norm=norm)
    optimizer = OPTIMIZERS[kind](network.parameters())
    scheduler = StepLR(optimizer, 2)
    train(network, optimizer, scheduler, epochs)
    saved = {
        "epoch": epochs - 1,
        "model_state_dict": {f"module.{name}": value for name, value in network.state_dict().items()},
        "optimizer_state_dic": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        **more,
    }
    torch.save(saved, path)
    return network, optimizer, scheduler


def gap(one: nn.Module, other: nn.Module) -> float:
    """The largest difference between two networks."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


class LeNet(LightningModule):
    """The network of the course's lesson on checkpoints, and its optimizer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 2)
        self.epochs: list[int] = []

    @staticmethod
    def data() -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(1)
        images, labels = torch.randn(8, 3, 32, 32, generator=generator), torch.arange(8) % 2
        return DataLoader(TensorDataset(images, labels), batch_size=4)

    def on_train_epoch_start(self) -> None:
        self.epochs.append(self.current_epoch)

    def training_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        x = nn.functional.max_pool2d(self.conv1(batch[0]).relu(), 2)
        x = nn.functional.max_pool2d(self.conv2(x).relu(), 2).flatten(1)
        return nn.functional.cross_entropy(self.fc3(self.fc2(self.fc1(x).relu()).relu()), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=0.01, momentum=0.9)
        return [optimizer], [StepLR(optimizer, 6)]


class Twin(LightningModule):
    """The three linear layers that the course saved from one GPU and from several."""

    def __init__(self, wrap: Callable[[nn.Module], nn.Module], shapes: list[torch.Size]) -> None:
        super().__init__()
        layers = nn.ModuleList(nn.Linear(shape[1], shape[0], bias=False) for shape in shapes)
        self.net = wrap(nn.ModuleDict({"linears": layers}))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass
