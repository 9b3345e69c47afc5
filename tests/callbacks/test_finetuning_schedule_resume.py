"""From any checkpoint the run ends bitwise where the uninterrupted one does. Float32, CPU, one thread, batches of 8."""

from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_module import Batches, Foreign, trainer, val_loader
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.tuner import Tuner
from torch.optim import SGD, AdamW
from torch.utils.data import DataLoader

from lit_transfer import frozen_names
from lit_transfer.callbacks import FinetuningSchedule, TolerantRestore, TrainabilityAudit

PHASES: list[Any] = [
    {"train": "head", "warmup": 2},
    {"at": {"epoch": 1}, "train": ["head", "encoder.2"]},
    {"at": {"step": 10}, "train": "all", "layer_decay": 0.5, "warmup": 3},
]
PLATEAU: list[Any] = [
    {"train": "head"},
    {"when": {"plateau": "val_loss", "min_delta": 10.0, "patience": 1}, "train": ["head", "encoder.2"]},
    {"when": {"metric": "val_loss", "below": 100.0}, "train": "all"},
]


class SaveAll(Callback):
    """A checkpoint at each epoch's end but the last, and in the middle of epochs."""

    def __init__(self, folder: Path, index: int = 1) -> None:
        self.folder, self.index = folder, index

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, idx: int
    ) -> None:
        if idx == self.index:
            trainer.save_checkpoint(self.folder / f"middle{trainer.current_epoch}.ckpt")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch < 3:
            trainer.save_checkpoint(self.folder / f"end{trainer.current_epoch}.ckpt")


def run(phases: Any, options: dict[str, Any], *callbacks: Callback, ckpt_path: Path | None = None) -> Foreign:
    options = dict(options)
    module = Foreign(options.pop("optimizer", AdamW), dropout=0.0)
    averaging = [EMAWeightAveraging(decay=0.5)] if options.pop("ema", False) else []
    made = trainer(FinetuningSchedule(phases), *averaging, *callbacks, max_epochs=4, **options)
    made.fit(module, Batches(), val_loader(), ckpt_path=ckpt_path, weights_only=True)
    return module


@pytest.mark.parametrize("phases", [PHASES, PLATEAU], ids=["fixed", "plateau"])
@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": lambda g: SGD(g, momentum=0.9)},
        {"optimizer": AdamW},
        {"ema": True},
        {"optimizer": lambda g: SGD(g, momentum=0.9), "ema": True},
        {"accumulate_grad_batches": 2},
        {"val_check_interval": 2},
    ],
    ids=["SGD", "AdamW", "AdamW EMA", "SGD EMA", "accumulation", "validation within epochs"],
)
def test_resuming_anywhere_ends_bitwise_where_the_whole_run_does(phases: Any, options: Any, tmp_path: Path) -> None:
    phases = [
        {**p, "at": {"step": 5}} if p.get("at") == {"step": 10} and "accumulate_grad_batches" in options else p
        for p in phases
    ]
    # Lightning skips a validation that would follow the very batch after which a checkpoint was saved.
    whole = run(phases, options, SaveAll(tmp_path, 2 if "val_check_interval" in options else 1))
    assert frozen_names(whole) == ()
    for saved in sorted(tmp_path.glob("*.ckpt")):
        resumed = run(phases, options, ckpt_path=saved)
        assert frozen_names(resumed) == (), saved.name
        for name, value in whole.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], value), (saved.name, name)


class Changes(Callback):
    """The steps at which what trains has changed."""

    def __init__(self) -> None:
        self.at: dict[int, int] = {}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        count = len(frozen_names(pl_module))
        if not self.at or [*self.at.values()][-1] != count:
            self.at[trainer.global_step] = count


def test_a_plateau_and_a_threshold_start_phases_and_a_latest_point_is_kept() -> None:
    changes = Changes()
    run(PLATEAU, {}, changes)
    assert changes.at == {0: 9, 8: 6, 12: 0}
    changes = Changes()
    never = {"metric": "val_loss", "below": -1.0}
    run([PLATEAU[0], {"when": never, "at": {"epoch": 2}, "train": "all"}], {}, changes)
    assert changes.at == {0: 9, 8: 0}


def test_a_metric_that_fires_within_a_window_of_accumulation_waits_for_its_end() -> None:
    changes = Changes()
    phases = [PLATEAU[0], {"when": {"metric": "val_loss", "below": 100.0}, "train": "all"}]
    run(phases, {"accumulate_grad_batches": 2, "val_check_interval": 1}, changes)
    assert changes.at == {0: 9, 1: 0}


def test_a_metric_that_nobody_logs_is_named() -> None:
    phases = [PLATEAU[0], {"when": {"metric": "val_acc", "above": 0.5}, "train": "all"}]
    with pytest.raises(ValueError, match=r"'val_acc', which no validation has logged\. Logged: val_loss"):
        run(phases, {"num_sanity_val_steps": 0})


def test_an_edited_schedule_counts_from_the_restored_progress(tmp_path: Path) -> None:
    run(PHASES, {}, SaveAll(tmp_path))
    edited = [{"train": "head"}, {"at": {"epoch": 3}, "train": ["head", "encoder.1"]}]
    changes = Changes()
    run(edited, {}, changes, ckpt_path=tmp_path / "end1.ckpt")
    assert changes.at == {8: 9, 12: 6}


def test_a_schedule_may_be_added_to_a_run_that_had_none(tmp_path: Path) -> None:
    module = Foreign(AdamW)
    trainer(SaveAll(tmp_path), max_epochs=2).fit(module, Batches(), val_loader())
    changes = Changes()
    run(PHASES, {}, changes, ckpt_path=tmp_path / "end0.ckpt")
    assert changes.at == {4: 6, 10: 0}


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_run_that_lost_its_schedule_is_refused_by_other_callbacks_and_measured_all_the_same(tmp_path: Path) -> None:
    class Derived(FinetuningSchedule):
        """As users make them."""

    module = Foreign(AdamW)
    trainer(Derived(PHASES[:2]), SaveAll(tmp_path), max_epochs=2).fit(module, Batches(), val_loader())
    saved = tmp_path / "end0.ckpt"
    for callbacks in ((), (TrainabilityAudit(),)):
        made = trainer(*callbacks, max_epochs=2)
        made.test(Foreign(AdamW), val_loader(), ckpt_path=saved, weights_only=True, verbose=False)
    for callback in (TrainabilityAudit(), TolerantRestore()):
        made = trainer(callback)
        with pytest.raises(ValueError, match=r"this run has none: all that was frozen.*FinetuningSchedule\('full'\)"):
            made.fit(Foreign(AdamW), Batches(), val_loader(), ckpt_path=saved, weights_only=True)
    changes = Changes()
    made = trainer(TrainabilityAudit(), FinetuningSchedule("full"), changes, max_epochs=2)
    made.fit(Foreign(AdamW), Batches(), val_loader(), ckpt_path=saved, weights_only=True)
    assert changes.at == {4: 0}


def test_without_any_of_our_code_lightning_names_the_schedule_that_is_missing_and_everything_trains(
    tmp_path: Path,
) -> None:
    run(PHASES, {}, SaveAll(tmp_path))
    changes = Changes()
    with pytest.warns(UserWarning, match="Please add the following callbacks:.*FinetuningSchedule"):
        trainer(changes, max_epochs=2).fit(
            Foreign(AdamW), Batches(), val_loader(), ckpt_path=tmp_path / "end0.ckpt", weights_only=True
        )
    assert changes.at == {4: 0}


class Found(Foreign):
    """Has what Lightning's finders set, and tells what was frozen while they ran."""

    def __init__(self) -> None:
        super().__init__(AdamW)
        self.lr, self.batch_size = 0.1, 2
        self.while_trained: set[tuple[str, ...]] = set()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.while_trained.add(frozen_names(self))
        return super().training_step(batch, batch_idx)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(val_loader().dataset, self.batch_size)

    def val_dataloader(self) -> DataLoader[Any]:
        return val_loader()


@pytest.mark.parametrize("finder", ["lr_find", "scale_batch_size"])
def test_the_finders_measure_the_first_phase_and_leave_trainability_as_they_found_it(
    finder: str, tmp_path: Path
) -> None:
    module = Found()
    made = trainer(FinetuningSchedule("linear_probe"), folder=tmp_path, max_epochs=1)
    options = {"num_training": 4, "min_lr": 1e-4} if finder == "lr_find" else {"steps_per_trial": 1, "max_trials": 2}
    getattr(Tuner(made), finder)(module, **options)
    assert frozen_names(module) == ()
    assert all(part.training for part in module.modules())
    assert {name[:7] for names in module.while_trained for name in names} == {"encoder"}
    made.fit(module)
    assert {name for name, p in module.named_parameters() if p.requires_grad} == {
        "classifier.weight",
        "classifier.bias",
    }
