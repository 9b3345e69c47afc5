"""What is frozen stays as it is through whole fits, for every norm layer. Float32, CPU, one thread, batches of 8."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from foreign_module import trainer
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lit_transfer import param_groups
from lit_transfer.callbacks import FinetuningSchedule


class Own(nn.BatchNorm2d):
    """As users derive them."""


def tracking(norm: Callable[..., nn.Module]) -> Callable[[int], nn.Module]:
    return lambda width: norm(width, affine=True, track_running_stats=True)


# The norm layer, and the axes of the images that it takes.
NORMS: dict[str, tuple[Callable[[int], nn.Module], int]] = {
    "BatchNorm1d": (nn.BatchNorm1d, 1),
    "BatchNorm2d": (nn.BatchNorm2d, 2),
    "BatchNorm3d": (nn.BatchNorm3d, 3),
    "SyncBatchNorm": (nn.SyncBatchNorm, 2),  # in train mode it runs on CUDA only; frozen, anywhere
    "InstanceNorm1d": (tracking(nn.InstanceNorm1d), 1),
    "InstanceNorm2d": (tracking(nn.InstanceNorm2d), 2),
    "InstanceNorm3d": (tracking(nn.InstanceNorm3d), 3),
    "no affines": (lambda width: nn.BatchNorm2d(width, affine=False), 2),
    "cumulative": (lambda width: nn.BatchNorm2d(width, momentum=None), 2),
    "derived": (Own, 2),
    "GroupNorm": (lambda width: nn.GroupNorm(2, width), 2),
    "LayerNorm": (lambda width: nn.LayerNorm([width, 4, 4]), 2),
    "RMSNorm": (lambda width: nn.RMSNorm([width, 4, 4]), 2),
}


class Normed(LightningModule):
    """Two convolutions with a norm layer and dropout each, and a classifier."""

    def __init__(self, norm: Callable[[int], nn.Module], axes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes]
        self.example_input_array = images(axes)
        self.body = nn.Sequential(
            nn.Sequential(conv(3, 6, 3, padding=1), norm(6), nn.ReLU(), nn.Dropout(0.5)),
            nn.Sequential(conv(6, 6, 3, padding=1), norm(6), nn.ReLU(), nn.Dropout(0.5)),
        )
        self.classifier = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.body(x).flatten(2).mean(-1))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(param_groups(self, 0.1))


def images(axes: int) -> torch.Tensor:
    return torch.randn(8, 3, *[4] * axes, generator=torch.Generator().manual_seed(axes)) + 1


class Look(Callback):
    """Compares the features of the frozen part in each training step with those of eval mode."""

    def __init__(self, inputs: torch.Tensor, expected: torch.Tensor) -> None:
        self.inputs, self.expected, self.looks = inputs, expected, 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        assert pl_module.training
        assert torch.equal(pl_module.body(self.inputs), self.expected)
        self.looks += 1


@pytest.mark.parametrize("norm", NORMS)
def test_over_three_epochs_with_validation_between_nothing_frozen_moves_and_features_are_those_of_eval_mode(
    norm: str,
) -> None:
    make, axes = NORMS[norm]
    module, inputs = Normed(make, axes), images(axes)
    for buffer in module.body.buffers():  # as after a pretraining, which is not what a batch has
        buffer.add_(1)
    before = copy.deepcopy(module.state_dict())
    with torch.no_grad():
        look = Look(inputs, module.eval().body(inputs))
    data = DataLoader(TensorDataset(torch.cat([inputs] * 3), torch.arange(24) % 3), 8)
    made = trainer(FinetuningSchedule("linear_probe"), look, max_epochs=3, val_check_interval=2)
    made.fit(module.train(), data, data)
    assert look.looks == 9
    assert torch.equal(module.train().body(inputs), look.expected)
    moved = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"classifier.weight", "classifier.bias"}
