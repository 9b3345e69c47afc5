"""The programs whose time from the command to the end of the first training step is measured; random weights.

A script beside a script, and a command beside a command: LightningCLI parses for seconds, whoever uses it.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

BATCH = 4
OVER = {"lit_transfer": "Lightning by hand", "lit-transfer fit": "LightningCLI by hand"}  # what each is beside
TOOLS = [tool for pair in OVER.items() for tool in pair]


class Stop(Callback):
    """Ends the process at the end of the first step."""

    def on_train_batch_end(self, *_: Any) -> None:
        """Leave at once."""
        os._exit(0)


def command(tool: str, data: Path, backbone: str) -> list[str]:
    """Give the command line of a tool."""
    common = {
        "data.root": data,
        "data.num_workers": 0,
        "model.backbone": backbone,
        "trainer.callbacks": "first_step.Stop",
    }
    if tool == "LightningCLI by hand":
        return [sys.executable, __file__, "fit", *_words({**common, "trainer.accelerator": "cpu"})]
    if tool == "lit-transfer fit":
        options = {**common, "data.batch_size": BATCH, "model.weights": "null"}
        return [sys.executable, "-c", "from lit_transfer.cli import main; main()", "fit", *_words(options)]
    return [sys.executable, __file__, tool, str(data), backbone]


def _words(options: dict[str, Any]) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def main() -> None:
    """Train one step."""
    if sys.argv[1] == "fit":
        from lightning.pytorch.cli import LightningCLI

        LightningCLI(*_by_hand())
    parser = argparse.ArgumentParser()
    for name in ("tool", "data", "backbone"):
        parser.add_argument(name)
    arguments = parser.parse_args()
    trainer = Trainer(max_epochs=1, accelerator="cpu", callbacks=[Stop()])
    trainer.fit(*(_ours(arguments) if arguments.tool == "lit_transfer" else _plain(arguments)))


def _ours(arguments: argparse.Namespace) -> tuple[LightningModule, LightningDataModule]:
    from lit_transfer.data import ImageFolderData
    from lit_transfer.modules import ImageClassifier

    module = ImageClassifier(arguments.backbone, weights=None)
    return module, ImageFolderData(arguments.data, batch_size=BATCH, num_workers=0)


def _plain(arguments: argparse.Namespace) -> tuple[LightningModule, LightningDataModule]:
    module, data = _by_hand()
    return module(arguments.backbone), data(arguments.data)


def _by_hand() -> tuple[type[LightningModule], type[LightningDataModule]]:
    """The same with Lightning alone, validation included."""
    import torch
    from torch import Tensor, nn
    from torch.utils.data import DataLoader
    from torchmetrics.classification import MulticlassAccuracy
    from torchvision.datasets import ImageFolder
    from torchvision.models import get_model
    from torchvision.transforms import v2

    class Module(LightningModule):
        def __init__(self, backbone: str) -> None:
            super().__init__()
            self.net, self.accuracy = get_model(backbone, num_classes=2), MulticlassAccuracy(2)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.accuracy(self.net(batch[0]), batch[1])
            self.log("val_acc", self.accuracy)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    crops = {
        "train": [v2.RandomResizedCrop(224), v2.RandomHorizontalFlip()],
        "val": [v2.Resize(256), v2.CenterCrop(224)],
    }
    numbers = [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]

    class Data(LightningDataModule):
        def __init__(self, root: str, num_workers: int = 0) -> None:
            super().__init__()
            self.root, self.num_workers = root, num_workers

        def _loader(self, split: str) -> DataLoader[Any]:
            transform, folder = v2.Compose([*crops[split], *numbers]), str(Path(self.root) / split)
            dataset = ImageFolder(folder, transform, is_valid_file=lambda path: path.endswith(".jpg"))
            return DataLoader(dataset, BATCH, shuffle=split == "train", num_workers=self.num_workers)

        def train_dataloader(self) -> DataLoader[Any]:
            return self._loader("train")

        def val_dataloader(self) -> DataLoader[Any]:
            return self._loader("val")

    return Module, Data


if __name__ == "__main__":
    main()
