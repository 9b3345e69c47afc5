"""The programs whose time from the command to the end of the first training step is measured; random weights."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback


class Stop(Callback):
    """Ends the process at the end of the first step."""

    def on_train_batch_end(self, *_: Any) -> None:
        """Leave at once."""
        os._exit(0)


def command(tool: str, data: Path, backbone: str) -> list[str]:
    """Give the command line of a tool."""
    if tool != "lit-transfer fit":
        return [sys.executable, __file__, str(data), "--backbone", backbone]
    given = {"data.root": data, "data.num_workers": 0, "data.batch_size": 4, "model.backbone": backbone}
    options = {**given, "model.weights": "null", "trainer.callbacks": "first_step.Stop"}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-c", "from lit_transfer.cli import main; main()", "fit", *words]


TOOLS = ["lit-transfer fit", "Lightning by hand"]


def main() -> None:
    """Train one step with Lightning alone."""
    import torch
    from lightning.pytorch import LightningModule, Trainer
    from torch import Tensor, nn
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.models import get_model
    from torchvision.transforms import v2

    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--backbone")
    arguments = parser.parse_args()

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = get_model(arguments.backbone, num_classes=2)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    transform = v2.Compose(
        [
            v2.RandomResizedCrop(224),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    root = str(arguments.data / "train")
    dataset = ImageFolder(root, transform, is_valid_file=lambda path: path.endswith(".jpg"))
    Trainer(max_epochs=1, accelerator="cpu", callbacks=[Stop()]).fit(Module(), DataLoader(dataset, 4, shuffle=True))


if __name__ == "__main__":
    main()
