"""A module's own steps, run outside of the loops on batches of one's own, as far as its backbone."""

import inspect
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer

from lit_transfer.callbacks._cached_loaders import Split

__all__ = ["Steps", "seed_generators"]


class Steps:
    """Runs `training_step` or `validation_step` as the loops do: transfer hooks, precision, modes and stage included.

    Nothing that it logs is kept.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, split: Split, loader: int) -> None:
        """Choose the step.

        Args:
            trainer: The trainer that fits.
            module: Its module.
            split: Which step.
            loader: Number of the loader that the batches are from.
        """
        self._trainer, self._module, self._split, self._loader = trainer, module, split, loader

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Put trainer and module into the state in which the loop runs the step; afterwards they are as before."""
        trainer, module = self._trainer, self._module
        stage, modes = trainer.state.stage, [(part, part.training) for part in module.modules()]
        module.__dict__["log"] = lambda *_, **__: None
        try:
            if self._split == "train":
                trainer.training = True
            else:
                trainer.validating = True
                for part, _ in modes:
                    part.training = False
            yield
        finally:
            del module.__dict__["log"]
            trainer.state.stage = stage
            for part, mode in modes:
                part.training = mode

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Have every module in eval mode, so that two runs of the part that trains give the same."""
        modes = [(part, part.training) for part in self._module.modules()]
        try:
            for part, _ in modes:
                part.training = False
            yield
        finally:
            for part, mode in modes:
                part.training = mode

    def run(self, batch: Any, number: int = 0) -> None:
        """Run the step on a batch that a loader gave."""
        trainer, module = self._trainer, self._module
        precision = trainer.precision_plugin
        batch = precision.convert_input(batch)
        batch = module._on_before_batch_transfer(batch, dataloader_idx=self._loader)
        batch = trainer.strategy.batch_to_device(batch, dataloader_idx=self._loader)
        step = module.training_step if self._split == "train" else module.validation_step
        names = inspect.signature(step).parameters
        arguments = [batch, number][: max(1, len(names))] if "batch_idx" not in names else [batch, number]
        context = precision.train_step_context() if self._split == "train" else precision.val_step_context()
        with context:
            step(*arguments, **({"dataloader_idx": self._loader} if "dataloader_idx" in names else {}))


def seed_generators(seed: int) -> torch.Generator:
    """Seed the generators of this process, and give one for a loader, which seeds its workers by it."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # what datasets and transforms draw from
    return torch.Generator().manual_seed(seed)
