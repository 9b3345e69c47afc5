"""A linear probe of 20 epochs, beside one plain pass over the same photos."""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch
from common import RATE, Clock, Measure, Net, Plain, accuracy, backbone_of, photos, trainer
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lit_transfer.callbacks import FeatureCaching, FinetuningSchedule
from lit_transfer.data import ImageFolderData
from lit_transfer.features import Fast

EPOCHS, HEADS = 20, 10
ONCE = {"BackboneFinetuning", "fastai"}  # tools that decode and compute in each epoch are measured in one round only


def _features(backbone: nn.Module, loader: DataLoader[Any]) -> tuple[Tensor, Tensor]:
    """Compute the features of all photos by hand, eagerly."""
    backbone.eval()
    with torch.inference_mode():
        pairs = [(backbone(images), targets) for images, targets in loader]
    features, targets = zip(*pairs, strict=True)
    return torch.cat(features), torch.cat(targets)


def one_pass(arguments: argparse.Namespace) -> dict[str, Any]:
    """Decode each photo once and run the backbone on it, by hand."""
    backbone = backbone_of(arguments)
    clock = Clock()
    for split in ("train", "val"):
        _features(backbone, photos(arguments, split))
    return clock.read()


def expert(arguments: argparse.Namespace) -> dict[str, Any]:
    """One pass by hand, channels last, and a loop over its features."""
    net = Net(backbone_of(arguments).to(memory_format=torch.channels_last))
    clock = Clock()
    train, val = (_features(net.backbone, photos(arguments, split)) for split in ("train", "val"))
    loader = DataLoader(TensorDataset(*train), 32, shuffle=True)
    optimizer = torch.optim.AdamW(net.head.parameters(), lr=RATE)
    for _ in range(EPOCHS):
        for features, targets in loader:
            optimizer.zero_grad()
            F.cross_entropy(net.head(features.clone()), targets).backward()
            optimizer.step()
    with torch.no_grad():
        reached = accuracy(net.head(val[0]), val[1])
    return {**clock.read(), "accuracy": reached}


def _fit(arguments: argparse.Namespace, backbone: nn.Module, folder: str, *, seed: int = 0, fast: Fast = True) -> float:
    """Fit a head on the features in a folder, which are computed where they are missing; give its accuracy."""
    torch.manual_seed(seed)
    caching = FeatureCaching(folder=folder, fast=fast)
    made = trainer(max_epochs=EPOCHS, callbacks=[FinetuningSchedule("linear_probe"), caching])
    made.fit(Whole(backbone), datamodule=ImageFolderData(arguments.data, augment="none", num_workers=2))
    return float(made.callback_metrics["acc"])


def ours(arguments: argparse.Namespace) -> dict[str, Any]:
    """FinetuningSchedule and FeatureCaching with nothing stored, then ten fits with other seeds."""
    backbone = backbone_of(arguments)
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock()
        first = {"accuracy": _fit(arguments, backbone, folder), **clock.read()}
        clock = Clock()
        others = [_fit(arguments, backbone, folder, seed=seed) for seed in range(1, HEADS + 1)]
    return {**first, "ten": clock.read()["seconds"], "others": others}


def narrow(arguments: argparse.Namespace) -> dict[str, Any]:
    """The same with features computed in bfloat16, without the other seeds."""
    backbone = backbone_of(arguments)
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock()
        return {"accuracy": _fit(arguments, backbone, folder, fast="bfloat16"), **clock.read()}


class Whole(Plain):
    """The same module with the whole of it in the optimizer: what is frozen has no gradient there."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Train everything that gets a gradient."""
        return torch.optim.AdamW(self.parameters(), lr=self.rate)


def lightning(arguments: argparse.Namespace) -> dict[str, Any]:
    """Lightning's own callback, which never unfreezes here."""
    torch.manual_seed(0)
    module = Plain(backbone_of(arguments))
    never = BackboneFinetuning(unfreeze_backbone_at_epoch=EPOCHS + 1)
    made = trainer(max_epochs=EPOCHS, callbacks=[never])
    clock = Clock()
    made.fit(module, photos(arguments, "train", shuffle=True), photos(arguments, "val"))
    return {**clock.read(), "accuracy": float(made.callback_metrics["acc"])}


def fastai(arguments: argparse.Namespace) -> dict[str, Any]:
    """A Learner frozen up to its head."""
    from fastai.vision.all import DataLoaders, Learner, params
    from fastai.vision.all import accuracy as fastai_accuracy

    torch.manual_seed(0)
    loaders = DataLoaders(photos(arguments, "train", shuffle=True), photos(arguments, "val"))
    learner = Learner(
        loaders,
        Net(backbone_of(arguments)),
        loss_func=F.cross_entropy,
        splitter=lambda net: [params(net.backbone), params(net.head)],
        metrics=fastai_accuracy,
    )
    learner.freeze()
    clock = Clock()
    with learner.no_bar(), learner.no_logging():
        learner.fit(EPOCHS, RATE)
    return {**clock.read(), "accuracy": float(learner.recorder.values[-1][-1])}


TOOLS: dict[str, Measure] = {
    "one pass": one_pass,
    "lit_transfer": ours,
    "lit_transfer, bfloat16": narrow,
    "PyTorch by hand": expert,
    "BackboneFinetuning": lightning,
    "fastai": fastai,
}
