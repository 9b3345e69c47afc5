"""Probabilities for all photos of a folder."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import Clock, Measure, Net, Plain, backbone_of, photos, trainer
from torch.nn import functional as F

from lit_transfer import load_predictor
from lit_transfer.modules import ImageClassifier


def ours(arguments: argparse.Namespace) -> dict[str, Any]:
    """A Predictor, given the folder."""
    module = ImageClassifier(backbone_of(arguments), num_classes=2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.ckpt"
        made = trainer(max_epochs=0)
        made.strategy.connect(module)
        made.save_checkpoint(path)
        predictor = load_predictor(path, "cpu", module=module)
    clock = Clock()
    answers = [predictor(arguments.data / split) for split in ("train", "val")]
    return {**clock.read(), "images": sum(map(len, answers))}


def expert(arguments: argparse.Namespace) -> dict[str, Any]:
    """A loop under inference mode, channels last."""
    net = Net(backbone_of(arguments)).eval().to(memory_format=torch.channels_last)
    clock = Clock()
    found = 0
    with torch.inference_mode():
        for split in ("train", "val"):
            for images, _ in photos(arguments, split):
                found += len(net(images.contiguous(memory_format=torch.channels_last)).softmax(1))
    return {**clock.read(), "images": found}


def lightning(arguments: argparse.Namespace) -> dict[str, Any]:
    """`Trainer.predict`."""
    module = Plain(backbone_of(arguments))
    clock = Clock()
    answers = [trainer().predict(module, photos(arguments, split)) for split in ("train", "val")]
    found = sum(len(batch) for batches in answers for batch in batches or ())
    return {**clock.read(), "images": found}


def fastai(arguments: argparse.Namespace) -> dict[str, Any]:
    """`Learner.get_preds`."""
    from fastai.vision.all import DataLoaders, Learner

    loaders = DataLoaders(*(photos(arguments, split) for split in ("train", "val")))
    learner = Learner(loaders, Net(backbone_of(arguments)), loss_func=F.cross_entropy)
    clock = Clock()
    with learner.no_bar(), learner.no_logging():
        found = sum(len(learner.get_preds(dl=loader, act=lambda x: x.softmax(1))[0]) for loader in loaders)
    return {**clock.read(), "images": found}


TOOLS: dict[str, Measure] = {
    "lit_transfer": ours,
    "PyTorch by hand": expert,
    "Trainer.predict": lightning,
    "fastai": fastai,
}
