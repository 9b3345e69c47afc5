"""From any checkpoint everything ends bitwise as in the uninterrupted run. Float32, CPU, one thread, batches of 8."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_runs import OPTIMIZERS, PHASES, Noisy, SaveEverywhere, differences, fit, validation
from foreign_module import Foreign, trainer
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.tuner import Tuner
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader

from lit_transfer.callbacks import FinetuningSchedule, TolerantRestore
from lit_transfer.data import DigitsData
from lit_transfer.modules import ImageClassifier


class Plateau(Foreign):
    """Its rate falls after each validation."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), 0.01)
        scheduler = ReduceLROnPlateau(optimizer, mode="max", patience=0, factor=0.5, threshold=10.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}


class Length(Foreign):
    """Asks for the length of the run, so that Lightning makes the loaders before it has their state."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)
        scheduler = OneCycleLR(optimizer, 0.1, total_steps=self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


CASES: dict[str, dict[str, Any]] = {
    "validation within epochs, windows of accumulation, a gradient scaler": {
        "scaler": True,
        "val_check_interval": 2,
        "accumulate_grad_batches": 3,
        "max_epochs": 2,
    },
    **{
        f"changes of phase, {name}": {
            "module": partial(Foreign, optimizer),
            "beside": partial(FinetuningSchedule, PHASES),
            "max_epochs": 2,
        }
        for name, optimizer in OPTIMIZERS.items()
    },
    "a scheduler that goes by a metric": {"module": Plateau, "max_epochs": 2},
    "no validation, a scheduler over the run": {"module": Length, "limit_val_batches": 0},
}


def resumed_differences(folder: Path, whole: dict[str, Any], **options: Any) -> dict[str, list[str]]:
    found = {}
    for path in sorted(folder.glob("*.ckpt")):
        found[path.stem] = list(differences(whole, fit(ckpt_path=path, seed=7, **options)))
    # Where nothing is left to train no validation runs, and Lightning counts none; nothing goes by these counts.
    end = f"epoch {whole['epoch'] - 1} end"
    found[end] = [place for place in found[end] if "val_loop.batch_progress" not in place]
    return found


def test_differences_are_found() -> None:
    assert list(differences(fit(max_epochs=1), fit(max_epochs=1, seed=2)))


@pytest.mark.parametrize("case", CASES)
def test_every_number_is_the_same_wherever_the_run_was_interrupted(case: str, tmp_path: Path) -> None:
    whole = fit(SaveEverywhere(tmp_path), **CASES[case])
    found = resumed_differences(tmp_path, whole, **CASES[case])
    assert len(found) >= 13
    assert not any(found.values()), found


def test_averaged_weights_too_except_amid_a_validation_where_it_is_told(tmp_path: Path) -> None:
    options: dict[str, Any] = {"beside": lambda: EMAWeightAveraging(decay=0.5), "max_epochs": 2}
    with pytest.warns(UserWarning, match="amid a validation, where EMAWeightAveraging has exchanged the weights"):
        whole = fit(SaveEverywhere(tmp_path), **options)
    for path in tmp_path.glob("*amid*"):
        path.unlink()
    found = resumed_differences(tmp_path, whole, **options)
    assert all("current_model_state" in place for place in found.pop("epoch 1 end"))  # put away in on_train_end only
    assert not any(found.values()), found


def test_a_run_may_be_interrupted_again_and_again(tmp_path: Path) -> None:
    """After Lightning's own resume at an epoch's last batch, the next one would lose an epoch."""
    whole = fit(SaveEverywhere(tmp_path))
    ckpt_path = None
    for number, name in enumerate(("epoch 0 batch 3", "epoch 1 batch 1", "epoch 1 batch 3", "epoch 1 end")):
        (tmp_path / str(number)).mkdir()
        last = fit(SaveEverywhere(tmp_path / str(number)), ckpt_path=ckpt_path, seed=number + 1)
        assert not list(differences(whole, last)), name
        ckpt_path = tmp_path / str(number) / f"{name}.ckpt"


@pytest.mark.parametrize("limit", [1.0, 0], ids=["validation", "no validation"])
def test_a_users_plain_loader_resumes_at_epochs_ends(limit: float, tmp_path: Path) -> None:
    """It has no generator of its own and shuffles, and its augmentation is drawn from that of the training."""
    options: dict[str, Any] = {
        "loader": lambda: DataLoader(Noisy(), 8, shuffle=True),
        "max_epochs": 2,
        "limit_val_batches": limit,
    }
    whole = fit(SaveEverywhere(tmp_path), **options)
    for path in (tmp_path / f"epoch {epoch} batch {batch}.ckpt" for epoch in (0, 1) for batch in (0, 1, 2)):
        path.unlink()
    found = resumed_differences(tmp_path, whole, **options)
    assert {"epoch 0 end", "epoch 0 batch 3", "epoch 1 batch 3"} <= set(found)
    assert not any(found.values()), found


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # what torchdata 0.11 calls in torch 2.15
def test_a_stateful_loader_of_torchdata_resumes_everywhere(tmp_path: Path) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader", reason="needs torchdata")
    options: dict[str, Any] = {
        "loader": lambda: stateful.StatefulDataLoader(Noisy(), 8, shuffle=True),
        "module": Length,
        "max_epochs": 2,
    }
    whole = fit(SaveEverywhere(tmp_path), **options)
    found = resumed_differences(tmp_path, whole, **options)
    assert len(found) >= 10
    assert not any(place for places in found.values() for place in places if "combined_loader" not in place), found


def test_our_modules_and_data_with_workers_and_augmentation(tmp_path: Path) -> None:
    """Squeezenet at 32 pixels, batches of 8, two workers; the module asks for the length of the run."""

    def run(*callbacks: Callback, ckpt_path: Path | None = None, seed: int = 1) -> dict[str, Any]:
        torch.manual_seed(0)
        module = ImageClassifier("squeezenet1_1", weights=None, input_size=32, dropout=0.5, mixup=0.2, cutmix=1.0)
        torch.manual_seed(seed)
        data = DigitsData([0, 1], 16, batch_size=8, num_workers=2)
        made = trainer(TolerantRestore(), *callbacks, max_epochs=2)
        made.fit(module, datamodule=data, ckpt_path=ckpt_path)
        return made._checkpoint_connector.dump_checkpoint()

    whole = run(SaveEverywhere(tmp_path))
    for name in ("epoch 0 batch 1", "epoch 0 batch 3"):
        found = list(differences(whole, run(ckpt_path=tmp_path / f"{name}.ckpt", seed=5)))
        assert not found, name


class Found(Foreign):
    """Has what Lightning's finders set."""

    lr, batch_size = 0.1, 2

    def train_dataloader(self) -> Any:
        return DataLoader(Noisy(), self.batch_size)

    def val_dataloader(self) -> Any:
        return validation()


@pytest.mark.parametrize("finder", ["lr_find", "scale_batch_size"])
def test_lightnings_finders_work_beside_it(finder: str, tmp_path: Path) -> None:
    module, made = Found(), trainer(TolerantRestore(), folder=tmp_path, max_epochs=1)
    options = {"num_training": 4, "min_lr": 1e-4} if finder == "lr_find" else {"steps_per_trial": 1, "max_trials": 2}
    getattr(Tuner(made), finder)(module, **options)
    made.fit(module)
    assert made.current_epoch == 1
