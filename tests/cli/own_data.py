"""Data of a user's own, by its full path on the command line: grey images with numbers, and with labels."""

from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

GREY = torch.linspace(0, 1, 16)


class Own(LightningDataModule):
    """Images of an even grey."""

    targets: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.train_dataset = TensorDataset(GREY.view(-1, 1, 1, 1).expand(-1, 3, 32, 32).clone(), self.targets)

    def _loader(self) -> DataLoader[Any]:
        return DataLoader(self.train_dataset, batch_size=8)

    train_dataloader = val_dataloader = test_dataloader = _loader


class Numbers(Own):
    """The targets are brightness and darkness."""

    target_names = ("brightness", "darkness")
    targets = torch.stack([100 * GREY, 1 - GREY], dim=1)


class Labels(Own):
    """An image may be bright, dark, or both."""

    label_names = ("bright", "dark")
    targets = torch.stack([GREY > 0.4, GREY < 0.6], dim=1).float()
