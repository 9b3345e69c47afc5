"""A strong pull keeps the backbone near its start, through clipping, schedules and resumes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_module import Batches, Foreign, trainer, val_loader
from torch.optim import SGD

from lit_transfer import param_groups
from lit_transfer.callbacks import L2SP, FinetuningSchedule


class Undecayed(Foreign):
    def configure_optimizers(self) -> Any:
        return SGD(param_groups(self, 0.05, 0.0))


def distance(module: Foreign) -> float:
    fresh = Foreign()
    pairs = zip(module.encoder.parameters(), fresh.encoder.parameters(), strict=True)
    return sum((a - b).square().sum().item() for a, b in pairs) ** 0.5


def test_the_stronger_the_pull_the_nearer_the_backbone_stays() -> None:
    apart = []
    for alpha in (0.0, 1.0, 5.0):
        module = Undecayed()
        trainer(FinetuningSchedule("full"), L2SP(alpha)).fit(module, Batches(), val_loader())
        apart.append(distance(module))
    assert apart == sorted(apart, reverse=True)
    assert apart[2] < 0.5 * apart[0]


def test_a_resumed_run_pulls_to_the_same_start(tmp_path: Path) -> None:
    def run(epochs: int, ckpt_path: Path | None = None) -> Foreign:
        module = Undecayed()
        module.encoder[1][3].p = 0.0
        made = trainer(FinetuningSchedule("full"), L2SP(1.0), max_epochs=epochs)
        made.fit(module, Batches(), val_loader(), ckpt_path=ckpt_path, weights_only=True)
        made.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return module

    run(1)
    resumed, whole = run(3, tmp_path / "1.ckpt"), run(3)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


def test_weight_decay_on_the_same_parameters_is_told() -> None:
    with pytest.warns(UserWarning, match="weight_decay=0"):
        trainer(L2SP(), max_epochs=1).fit(Foreign(), Batches(), val_loader())


def test_a_negative_pull_is_refused() -> None:
    with pytest.raises(ValueError, match="alpha must be"):
        L2SP(-1)
