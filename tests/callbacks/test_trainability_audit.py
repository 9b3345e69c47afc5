"""The audit tells what trains at the start and at each change, in any fit, and stops what would go wrong in silence."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_module import Batches, Foreign, trainer, val_loader
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from lit_transfer import freeze, unfreeze
from lit_transfer.callbacks import FinetuningSchedule, TrainabilityAudit

PHASES: list[Any] = [{"train": "head"}, {"at": {"epoch": 1}, "train": ["head", "encoder.2"], "lr": 0.1}]


def test_a_table_is_printed_at_the_start_and_at_each_change_and_the_rates_are_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr("lit_transfer.callbacks.trainability_audit.rank_zero_info", told.append)
    logger = CSVLogger(tmp_path)
    made = trainer(TrainabilityAudit(), FinetuningSchedule(PHASES), logger=logger, log_every_n_steps=1)
    made.fit(Foreign(), Batches(), val_loader())
    assert [line.split(":")[0] for line in told] == [
        f"Trainability in epoch {e}, step {s}" for e, s in ((0, 0), (1, 4))
    ]
    assert told[0].splitlines()[2].split()[:3] == ["stem", "174", "frozen"]
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        logged = [row for row in csv.DictReader(file) if row["lr/head"]]
    assert [float(row["lr/head"]) for row in logged] == pytest.approx([0.05] * 4 + [0.1] * 8)
    assert [float(row["lr/stage2"]) for row in logged] == pytest.approx([0.0] * 4 + [0.1] * 8)
    assert {float(row["lr/stem"]) for row in logged} == {0.0}


def test_plain_freezing_that_lets_statistics_move_is_stopped() -> None:
    module = Foreign()
    module.encoder.requires_grad_(False)
    with pytest.raises(ValueError, match="running statistics move"):
        trainer(TrainabilityAudit()).fit(module, Batches(), val_loader())


@pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training")
def test_a_parameter_unfrozen_outside_of_the_optimizer_is_stopped() -> None:
    class Late(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 1:
                unfreeze(pl_module, "encoder")

    class Filtered(Foreign):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.1)

    module = Filtered()
    freeze(module, "encoder")
    with pytest.raises(ValueError, match="no optimizer has them"):
        trainer(TrainabilityAudit(), Late()).fit(module, Batches(), val_loader())
