"""The same training several times: over the folds of its data, or over seeds."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lit_transfer.callbacks import TolerantRestore
from lit_transfer.restore import checkpoints_in, first_whole
from lit_transfer.runs._ledger import Ledger
from lit_transfer.runs._settle import MEASURED, Measured, check_single, settle
from lit_transfer.runs._summary import Summary, summarise

MakeModule = Callable[[], LightningModule]
MakeData = Callable[[], Any]
MakeTrainer = Callable[[Path], Trainer]


def cross_validate(
    make_module: MakeModule,
    make_data: MakeData,
    *,
    folds: int = 5,
    folder: str | Path = "runs/folds",
    seed: int = 0,
    measured: Measured = "last",
    make_trainer: MakeTrainer | None = None,
) -> Summary:
    """Train a module for each fold of the data, and answer for each image with the one that has not seen it.

    The folds are cut by the data's own seed (see `LabelledImageData.take_fold`). What is done is kept: the same call
    with the same folder trains the folds that are missing, and goes on in the middle of the one that was interrupted.

    Args:
        make_module: Makes a fresh module, such as `lambda: ImageClassifier("resnet18")`.
        make_data: Makes a fresh datamodule that can `take_fold`, such as `lambda: ImageFolderData("photos/")`.
        folds: How many, at least 2.
        folder: Where all is left: a folder for each fold, `out_of_fold.csv` (path, target, fold and the answer for
            each image) and `runs.json`.
        seed: Of all else that is random, the same for each fold.
        measured: Which weights are measured: `"last"`, as training ended, or `"best"`, those of the best checkpoint.
            The latter was chosen by the very images it is measured on, so that its numbers flatter.
        make_trainer: Makes a fresh trainer of one device for a run from the run's folder; None for 10 epochs, a CSV
            log, and the best and the last checkpoint.

    Returns:
        The metrics of each fold, their mean and standard deviation, and those over all out-of-fold answers.

    Raises:
        ValueError: If the data has too few images for the folds, or the folder holds other runs.
    """
    if folds < 2:
        raise ValueError(f"folds={folds}: cross-validation needs at least two.")
    ledger = Ledger(folder, "folds", range(folds), {"seed": seed, "measured": measured})

    def data_of(fold: int) -> Any:
        return with_fold(make_data(), fold, folds)

    return _run_each(ledger, make_module, data_of, lambda _: seed, measured, make_trainer)


def run_seeds(
    make_module: MakeModule,
    make_data: MakeData,
    *,
    seeds: int | Sequence[int] = 5,
    folder: str | Path = "runs/seeds",
    measured: Measured = "last",
    make_trainer: MakeTrainer | None = None,
) -> Summary:
    """Train the same once for each seed, and tell mean and spread.

    All that is random differs (a fresh head, dropout, order, augmentation) but the split of the data, so that the
    spread is that of the training alone. What is done is kept, as by `cross_validate`; more seeds may be added.

    Args:
        make_module: Makes a fresh module.
        make_data: Makes a fresh datamodule. One that can `reseed` gets the seed; another draws from the global ones.
        seeds: The seeds, or how many of them, from 0.
        folder: Where all is left: a folder for each seed, and `runs.json`.
        measured: As for `cross_validate`.
        make_trainer: As for `cross_validate`.

    Returns:
        The metrics of each seed, their mean and standard deviation.

    Raises:
        ValueError: If a seed is there twice, or the folder holds other runs.
    """
    ledger = Ledger(folder, "seeds", as_seeds(seeds), {"measured": measured})

    def data_of(seed: int) -> Any:
        return with_seed(make_data(), seed)

    return _run_each(ledger, make_module, data_of, lambda seed: seed, measured, make_trainer)


def as_seeds(seeds: int | Sequence[int]) -> list[int]:
    """Give the seeds that are meant.

    Raises:
        ValueError: If there is none, one is there twice, or one is below 0.
    """
    numbers = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not numbers or min(numbers) < 0:
        raise ValueError(f"seeds={seeds}: expected a number of seeds, at least 1, or a list of them, none below 0.")
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"seeds={numbers}: a seed is there twice, and would count twice. Name each once.")
    return numbers


def with_fold(datamodule: Any, fold: int, folds: int) -> Any:
    """Let a datamodule validate on a fold.

    Raises:
        ValueError: If it cannot.
    """
    if not hasattr(datamodule, "take_fold"):
        raise ValueError(
            f"{type(datamodule).__name__} cannot be cut into folds: give ImageFolderData, TableData or DigitsData, or "
            "a datamodule with take_fold(fold, folds) and val_rows()."
        )
    datamodule.take_fold(fold, folds)
    return datamodule


def with_seed(datamodule: Any, seed: int) -> Any:
    """Give order and augmentation a seed, and leave the split, where the datamodule tells them apart."""
    if hasattr(datamodule, "reseed"):
        datamodule.reseed(seed)
    return datamodule


def newest_checkpoint(place: Path) -> Path | None:
    """Give what an interrupted run goes on from, None if it must begin."""
    return first_whole(checkpoints_in(place / "checkpoints"))[0]


@contextmanager
def going_on() -> Iterator[None]:
    """Leave out Lightning's warnings of folders that an interrupted run left: it goes on there."""
    with warnings.catch_warnings():
        for what in ("Experiment logs directory", "Checkpoint directory"):
            warnings.filterwarnings("ignore", message=f"{what} .* exists and is not empty")
        yield


def _run_each(
    ledger: Ledger,
    make_module: MakeModule,
    data_of: Callable[[int], Any],
    seed_of: Callable[[int], int],
    measured: Measured,
    make_trainer: MakeTrainer | None,
) -> Summary:
    if measured not in MEASURED:
        raise ValueError(f"measured={measured!r}: expected one of {MEASURED}.")
    for number in ledger.missing:
        seed_everything(seed_of(number), workers=True, verbose=False)
        datamodule, module = data_of(number), make_module()
        place = ledger.place(number)
        trainer = _usual_trainer(place, module) if make_trainer is None else make_trainer(place)
        check_single(trainer)
        with going_on():
            trainer.fit(module, datamodule=datamodule, ckpt_path=newest_checkpoint(place))
        settle(trainer, module, datamodule, ledger, number, measured)
    return summarise(ledger)


def _usual_trainer(place: Path, module: LightningModule) -> Trainer:
    monitor, mode = getattr(module, "monitor", ("val_loss", "min"))
    log = CSVLogger(place.parent, name="", version=place.name)
    best = ModelCheckpoint(place / "checkpoints", filename="best", monitor=monitor, mode=mode)
    last = ModelCheckpoint(place / "checkpoints", filename="last", enable_version_counter=False)
    return Trainer(
        max_epochs=10, devices=1, default_root_dir=place, logger=log, callbacks=[best, last, TolerantRestore()]
    )
