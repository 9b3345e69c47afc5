"""Runs that are interrupted everywhere and go on: a small network with dropout, random augmentation, every counter."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from foreign_module import Foreign, trainer
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lit_transfer.callbacks import TolerantRestore
from lit_transfer.data import ResumableLoader

EPOCHS = 3
RANK = int(os.environ.get("LOCAL_RANK", "0"))
PHASES: list[Any] = [  # one change at an epoch's start, one in its middle
    {"train": "head"},
    {"at": {"epoch": 1}, "train": ["head", "encoder.2"]},
    {"at": {"step": 5}, "train": "all"},
]
OPTIMIZERS: dict[str, Any] = {"SGD": lambda groups: torch.optim.SGD(groups, momentum=0.9), "AdamW": torch.optim.AdamW}


class Noisy(Dataset[tuple[Tensor, Tensor, int]]):
    """Images with augmentation at random, their classes and numbers; 26 of them."""

    def __len__(self) -> int:
        return 26

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        image = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(index))
        return image + torch.rand(1), torch.tensor(index % 3), index


class SaveEverywhere(Callback):
    """A checkpoint at each point where Lightning's own callbacks and users save; listed last, as ModelCheckpoint is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, idx: int) -> None:
        trainer.save_checkpoint(self.folder / f"epoch {trainer.current_epoch} batch {idx}.ckpt")

    def on_validation_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, *rest: Any) -> None:
        if not trainer.sanity_checking and rest[1] == 0:
            where = f"epoch {trainer.current_epoch} batch {trainer.fit_loop.batch_idx} amid validation"
            trainer.save_checkpoint(self.folder / f"{where}.ckpt")

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.sanity_checking:
            where = f"epoch {trainer.current_epoch} batch {trainer.fit_loop.batch_idx} validated"
            trainer.save_checkpoint(self.folder / f"{where}.ckpt")

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        trainer.save_checkpoint(self.folder / f"epoch {trainer.current_epoch} end.ckpt")


class Seen(Callback):
    """The numbers of the samples that this process trained on in each epoch."""

    def __init__(self) -> None:
        self.samples: dict[int, list[int]] = defaultdict(list)

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.samples[trainer.current_epoch] += batch[2].tolist()


def validation() -> DataLoader[Any]:
    """Without a generator of its own: its iterator draws from that of the training."""
    return DataLoader(Noisy(), 13)


def fit(
    *callbacks: Callback,
    ckpt_path: Path | None = None,
    module: Callable[[], LightningModule] = Foreign,
    loader: Callable[[], Any] = lambda: ResumableLoader(Noisy(), 8),
    beside: Callable[[], Callback] | None = None,
    seed: int = 1,
    grace: float = 60.0,
    scaler: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Fit, and return everything that a checkpoint at the end would hold."""
    made = module()
    torch.manual_seed(seed + 100 * RANK)  # a run that goes on must not depend on it
    extra = [beside()] if beside else []
    if scaler:  # its first step overflows and is skipped
        scale = torch.amp.GradScaler("cpu", init_scale=2.0**18, growth_interval=3)
        options["plugins"] = [MixedPrecision("16-mixed", "cpu", scale)]
    run = trainer(TolerantRestore(grace=grace), *extra, *callbacks, **{"max_epochs": EPOCHS, **options})
    run.fit(made, loader(), validation(), ckpt_path=ckpt_path)
    return run._checkpoint_connector.dump_checkpoint()


def differences(one: Any, other: Any, place: str = "") -> Iterator[str]:
    """Name the places where two checkpoints are not equal bit by bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() | other.keys():
            yield from differences(one.get(key), other.get(key), f"{place}/{key}")
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        for number, pair in enumerate(zip(one, other, strict=True)):
            yield from differences(*pair, f"{place}/{number}")
    elif isinstance(one, Tensor) and isinstance(other, Tensor):
        if not torch.equal(one, other):
            yield place
    elif one != other:
        yield f"{place}: {one} {other}"
