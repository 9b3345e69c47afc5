"""Fits of labels and numbers in two gloo processes, to be started as a script: each writes what it found, as JSON.

Usage: tasks_ddp.py FOLDER. Starting the processes is what takes long, so that one pair fits all cases.
"""

import contextlib
import io
import json
import os
import sys
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lit_transfer.modules import ImageRegressor, MultiLabelClassifier

IMAGES = 32
TASKS: dict[str, Any] = {"labels": MultiLabelClassifier, "numbers": ImageRegressor}
CASES = [f"{task} {given}" for task in TASKS for given in ("loaders", "hooks")]


def dataset(task: str) -> TensorDataset:
    """Noise with three colours; what is learned are the colours that are there, or how much of the first two."""
    generator = torch.Generator().manual_seed(0)
    amounts = torch.rand(IMAGES, 3, generator=generator)
    pictures = amounts[:, :, None, None] + 0.1 * torch.randn(IMAGES, 3, 16, 16, generator=generator)
    numbers = torch.tensor([5000.0, -3.0]) + torch.tensor([100.0, 0.1]) * amounts[:, :2]
    return TensorDataset(pictures, (amounts > 0.6).float() if task == "labels" else numbers)


class Data(LightningDataModule):
    """Tells what TableData tells; batches are of 8 images, those of all processes together."""

    def __init__(self, task: str, ranks: int) -> None:
        super().__init__()
        self.train_dataset, self.ranks = dataset(task), ranks
        targets = self.train_dataset.tensors[1]
        if task == "labels":
            self.label_names, self.label_counts = ["red", "green", "blue"], targets.sum(0).int().tolist()
        else:
            self.target_names = ["brightness", "darkness"]
            self.target_mean, self.target_std = targets.mean(0).tolist(), targets.std(0, correction=0).tolist()

    def train_dataloader(self) -> DataLoader[Any]:
        """Give process 0 the images 0, 2, 4 ... in order, so that global batches are the same; Lightning shuffles."""
        rank = int(os.environ.get("LOCAL_RANK", 0)) if self.ranks > 1 else 0
        sampler = DistributedSampler(self.train_dataset, self.ranks, rank, shuffle=False)
        return DataLoader(self.train_dataset, batch_size=8 // self.ranks, sampler=sampler)

    def val_dataloader(self) -> DataLoader[Any]:
        """Give all images, of which Lightning gives each process its part."""
        return DataLoader(self.train_dataset, batch_size=8 // self.ranks)

    test_dataloader = predict_dataloader = val_dataloader


def fit(case: str, ranks: int, folder: str) -> dict[str, Any]:
    """Fit, test and predict."""
    task, given = case.split()
    torch.manual_seed(0)
    layers = OrderedDict(  # without batch norm, whose statistics differ with the part of the batch that it sees
        stem=nn.Conv2d(3, 8, 3, stride=2),
        act=nn.ReLU(),
        pool=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        fc=nn.Linear(8, 7),
    )
    data, number = Data(task, ranks), {"labels": {"num_labels": 3}, "numbers": {"num_targets": 2}}[task]
    module = TASKS[task](
        nn.Sequential(layers),
        backbone_lr_factor=1.0,
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.3),
        **({} if given == "hooks" else number),
    )
    trainer = Trainer(
        max_epochs=4,
        accelerator="cpu",
        devices=ranks,
        strategy=DDPStrategy(process_group_backend="gloo") if ranks > 1 else "auto",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    source: dict[str, Any] = {"datamodule": data}
    if given == "loaders":
        source = {"train_dataloaders": data.train_dataloader(), "val_dataloaders": data.val_dataloader()}
    trainer.fit(module, **source)
    found = {name: value.item() for name, value in trainer.callback_metrics.items()}
    tested = trainer.test(module, data.test_dataloader(), verbose=False)[0]
    answers = torch.cat(trainer.predict(module, data.predict_dataloader()))
    buffers = {name: value.tolist() for name, value in module.named_buffers(recurse=False)}
    figures = {name: [len(figure.axes)] for name, figure in module.figures("val").items()}
    seen = {stage: record.shape[1] for stage, record in module.records.items()}
    values = torch.cat([value.detach().flatten() for value in module.parameters()]).tolist()
    return {
        "metrics": {**found, **tested},
        "buffers": buffers,
        "values": values,
        "answers": answers.tolist(),
        "seen": seen,
        "figures": figures,
    }


def command(task: str, folder: str) -> str:
    """Run `fit` on the command line, and give what this process printed."""
    from lit_transfer.cli import main

    os.chdir(folder)
    name = TASKS[task].__name__
    words = [f"--model={name}", "--model.backbone=squeezenet1_1", "--model.weights=null", "--model.input_size=32"]
    words += [f"--data=own_data.{'Labels' if task == 'labels' else 'Numbers'}", "--trainer.accelerator=cpu"]
    words += ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_epochs=1"]
    words += ["--trainer.enable_progress_bar=false", f"--trainer.logger.save_dir={folder}/{task}"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = main(["fit", *words])
    return f"exit code {code}\n{said.getvalue()}"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))  # own_data
    place = sys.argv[1]
    answers: dict[str, Any] = {case: fit(case, 2, place) for case in CASES}
    answers["said"] = {task: command(task, place) for task in TASKS}
    Path(place, f"rank{os.environ.get('LOCAL_RANK', '0')}.json").write_text(json.dumps(answers))
