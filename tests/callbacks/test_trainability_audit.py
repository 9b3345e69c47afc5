"""The audit tells what trains at the start and at each change, in any fit, and stops what would go wrong in silence."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from foreign_module import Batches, Foreign, trainer, val_loader
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger
from torch.optim.lr_scheduler import LambdaLR

from lit_transfer import freeze, param_groups, unfreeze
from lit_transfer.callbacks import FinetuningSchedule, TrainabilityAudit
from lit_transfer.callbacks._picture import thinned
from lit_transfer.schedule import Moment, timeline

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


def test_the_table_is_told_and_what_is_wrong_is_refused_before_the_first_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    monkeypatch.setattr("lit_transfer.callbacks.trainability_audit.rank_zero_info", told.append)

    class Unreached(Foreign):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            assert len(told) == 1
            raise RuntimeError("the first batch")

    with pytest.raises(RuntimeError, match="the first batch"):
        trainer(TrainabilityAudit(), FinetuningSchedule(PHASES)).fit(Unreached(), Batches(), val_loader())
    module = Unreached()
    module.encoder.requires_grad_(False)
    with pytest.raises(ValueError, match="running statistics move"):
        trainer(TrainabilityAudit()).fit(module, Batches(), val_loader())


def test_a_rate_of_zero_leaves_the_weights_of_a_frozen_backbone_and_is_told_to_cost_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    monkeypatch.setattr("lit_transfer.callbacks.trainability_audit.rank_zero_info", told.append)

    class Warm(Foreign):
        """Whose scheduler begins at 0, which is not meant."""

        def __init__(self, lr: float) -> None:
            super().__init__(scheduler=lambda o: LambdaLR(o, lambda step: step / 4))
            self.lr = lr

        def configure_optimizers(self) -> Any:
            self.make_optimizer = lambda _: torch.optim.SGD(param_groups(self, self.lr, head_lr=0.1))
            return super().configure_optimizers()

    ended = []
    for lr, phases in ((0.0, "full"), (0.1, "linear_probe"), (0.1, "full")):
        ended.append(Warm(lr))
        trainer(FinetuningSchedule(phases), TrainabilityAudit(), max_epochs=2).fit(ended[-1], Batches(), val_loader())
    assert "stem, stage1, stage2 will not move at rate 0: freezing saves" in told[0]
    assert not any("will not move" in text for text in told[1:])
    weights = [torch.cat([p.detach().flatten() for p in module.encoder.parameters()]) for module in ended]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_picture_beside_the_metrics_is_of_what_the_timeline_foretold(tmp_path: Path) -> None:
    phases: list[Any] = [*PHASES, {"at": {"step": 9}, "train": "all", "warmup": 3}]
    module, logger, audit = Foreign(), CSVLogger(tmp_path), TrainabilityAudit()
    made = trainer(audit, FinetuningSchedule(phases), logger=logger, log_every_n_steps=1)
    made.fit(module, Batches(), val_loader())
    optimizer = module.make_optimizer(param_groups(module, 0.05, 0.01))
    told = timeline(module, phases, epochs=3, steps_per_epoch=4, optimizers=[optimizer])
    assert audit.moments == [replace(moment, lr=pytest.approx(moment.lr)) for moment in told]
    assert Path(logger.log_dir, "schedule.png").read_bytes().startswith(b"\x89PNG")


def test_tensorboard_gets_a_figure_and_loggers_without_pictures_nothing(tmp_path: Path) -> None:
    class Experiment:
        figures: ClassVar[list[tuple[Any, ...]]] = []

        def add_figure(self, tag: str, figure: Any, global_step: int) -> None:
            self.figures.append((tag, len(figure.axes), global_step))

    class Plain(Logger):
        name, version = "plain", 0

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None: ...

        def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None: ...

    class Figures(Plain):
        experiment = Experiment()

    made = trainer(TrainabilityAudit(), logger=[Plain(), Figures()], max_epochs=1, log_every_n_steps=0)
    made.fit(Foreign(), Batches(), val_loader())
    assert Experiment.figures == [("schedule", 2, 4)]


def test_a_folder_that_cannot_be_written_to_does_not_stop_a_fit_that_is_over(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)

    class Blocked(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            Path(logger.log_dir, "schedule.png").mkdir()

    made = trainer(TrainabilityAudit(), Blocked(), logger=logger, max_epochs=1, log_every_n_steps=1)
    with pytest.warns(UserWarning, match="picture of the schedule could not be written"):
        made.fit(Foreign(), Batches(), val_loader())
    assert made.state.finished


def test_a_long_run_keeps_the_moments_that_a_picture_needs() -> None:
    moments = [Moment(step, 0, step // 51, {"head": 1.0}, 1, {}) for step in range(101)]
    assert thinned(moments, 101) == moments
    kept = [moment.step for moment in thinned(moments, 100)]
    assert kept == sorted([*range(0, 101, 2), 51])


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
