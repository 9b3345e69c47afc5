"""Fits with one option each in two gloo processes, to be started as a script: each writes what it found, as JSON.

Usage: options_ddp.py FOLDER. Starting the processes is what takes long, so that one pair fits all cases.
"""

import json
import os
import sys
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lit_transfer.callbacks import EMA, FinetuningSchedule, LoRA
from lit_transfer.data import ImageFolderData
from lit_transfer.modules import ImageClassifier

IMAGES, EPOCHS = 32, 4
PHASES: list[Any] = [
    {"train": ["head"]},
    {"at": {"epoch": 1}, "train": ["head", "lora"]},
    {"at": {"epoch": 3}, "train": "all"},
]
# What gives the same in two processes as in one, as long as the batches of all processes are those of one.
SAME = {"ema": lambda: [EMA(0.9)], "lora": lambda: [LoRA(r=2), Filled(), FinetuningSchedule(PHASES)]}
COUNTS = {"many": 21, "few": 3}


class Filled(Callback):
    """Gives adapters their first values, which otherwise depend on what else was drawn in a process."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Draw them from a generator of its own."""
        generator = torch.Generator().manual_seed(0)
        for name, parameter in pl_module.named_parameters():
            if "lora_A" in name and stage == "fit":
                parameter.data.normal_(generator=generator)


class Noted(Callback):
    """The targets that each epoch's losses are made of."""

    def __init__(self) -> None:
        self.targets: list[list[Any]] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        """Begin a list."""
        self.targets.append([])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at what the loss is given."""
        pl_module.loss.register_forward_pre_hook(self._note)

    def _note(self, loss: nn.Module, given: tuple[Tensor, Tensor]) -> None:
        if loss.training:
            self.targets[-1] += given[1].tolist()


def dataset() -> TensorDataset:
    """Noise of three brightnesses, which are the classes."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(IMAGES) % 3
    return TensorDataset(classes[:, None, None, None] + torch.randn(IMAGES, 3, 16, 16, generator=generator), classes)


def module(**options: Any) -> ImageClassifier:
    """Build a network without batch norm, whose statistics differ with the part of the batch that it sees."""
    torch.manual_seed(0)
    layers = OrderedDict(
        stem=nn.Conv2d(3, 8, 3, stride=2),
        act=nn.ReLU(),
        pool=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        fc=nn.Linear(8, 7),
    )
    options = {"backbone_lr_factor": 1.0, "optimizer": lambda groups: torch.optim.SGD(groups, lr=0.1), **options}
    return ImageClassifier(nn.Sequential(layers), **options)


def trainer(ranks: int, *callbacks: Callback, **options: Any) -> Trainer:
    """Make a quiet Trainer of one or two processes."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        devices=ranks,
        strategy=DDPStrategy(process_group_backend="gloo") if ranks > 1 else "auto",
        enable_model_summary=False,
        callbacks=list(callbacks),
        **quiet,
        **options,
    )


def loader(ranks: int) -> DataLoader[Any]:
    """Give process 0 the images 0, 2, 4 ... in order, so that the batches of both together are those of one."""
    rank, images = (int(os.environ.get("LOCAL_RANK", 0)) if ranks > 1 else 0), dataset()
    return DataLoader(images, batch_size=8 // ranks, sampler=DistributedSampler(images, ranks, rank, shuffle=False))


def values(net: nn.Module) -> list[float]:
    """Give all weights in a row."""
    numbers: list[float] = torch.cat([value.detach().flatten() for value in net.state_dict().values()]).tolist()
    return numbers


def fit(case: str, ranks: int) -> dict[str, Any]:
    """Fit with callbacks whose result does not depend on the number of processes."""
    net, made = module(num_classes=3), trainer(ranks, *SAME[case]())
    made.fit(net, loader(ranks), DataLoader(dataset(), batch_size=8 // ranks))
    metrics = {name: value.item() for name, value in made.callback_metrics.items() if name.startswith("val")}
    return {"values": values(net), "metrics": metrics}


def mixed(ranks: int) -> dict[str, Any]:
    """Fit with mixup and cutmix."""
    net, noted = module(num_classes=3, mixup=1.0, cutmix=1.0), Noted()
    trainer(ranks, noted).fit(net, loader(ranks))
    return {"values": values(net), "targets": noted.targets}


def write_photos(folder: Path) -> None:
    """Write photos of two classes, one of them rare."""
    for name, count in COUNTS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = np.full((20, 20, 3), 7 * number + (120 if name == "few" else 0), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def balanced(ranks: int, photos: Path) -> dict[str, Any]:
    """Fit on as many photos of the one class as of the other."""
    data = ImageFolderData(
        photos, 8 // ranks, image_size=16, augment="none", num_workers=0, sampling="balanced", val_fraction=0.0
    )
    net, noted = module(), Noted()
    trainer(ranks, noted).fit(net, datamodule=data)
    return {"values": values(net), "targets": noted.targets}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    found: dict[str, Any] = {case: fit(case, 2) for case in SAME}
    found |= {"mixed": mixed(2), "balanced": balanced(2, place / "photos")}
    (place / f"rank{os.environ.get('LOCAL_RANK', '0')}.json").write_text(json.dumps(found))
