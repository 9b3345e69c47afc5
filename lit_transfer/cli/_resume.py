"""`fit --resume auto`: which checkpoint a run goes on from, and a log that goes on from the same place."""

import csv
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

from lit_transfer.restore import checkpoints_in, first_whole
from lit_transfer.weights import open_checkpoint


def find_checkpoint(loggers: Sequence[Logger], callbacks: Sequence[Callback], root: str | None) -> Path | None:
    """Find the newest whole checkpoint of the newest run that has one.

    Looked at are the folder of a ModelCheckpoint that names one, the loggers' folders `version_N`, highest first, and
    where there is no logger the trainer's own folder. A logger goes on in the folder of its run.

    Args:
        loggers: The run's loggers, whose version is set.
        callbacks: The run's callbacks.
        root: The trainer's `default_root_dir`.
    """
    named = [c.dirpath for c in callbacks if isinstance(c, ModelCheckpoint) and c.dirpath]
    versions = _versions(loggers)
    places = [Path(folder) for folder in named] or [version / "checkpoints" for version in versions]
    if not loggers:
        places = places or [Path(root or ".") / "checkpoints"]
    for place in places:
        found, wrong = first_whole(checkpoints_in(place))
        for path, reason in wrong.items():
            rank_zero_warn(f"--resume auto passes over {path}: {reason}.")
        if found is not None:
            rank_zero_info(f"--resume auto goes on from {found}.")
            if place.parent in versions:
                _go_on_in(place.parent, loggers)
            return found
    rank_zero_info("--resume auto finds no checkpoint to go on from: the run starts afresh.")
    return None


def keep_log(trainer: Trainer, checkpoint: Path) -> None:
    """Let CSV logs keep the rows that were written before the checkpoint: Lightning empties a log that is there."""
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    if getattr(rank_zero_only, "rank", 0) != 0:
        return
    step = int(open_checkpoint(checkpoint).root["global_step"])
    for logger in trainer.loggers:
        file = Path(logger.log_dir or "") / "metrics.csv"
        if isinstance(logger, CSVLogger) and file.is_file():
            rows = _rows(file, step)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Experiment logs directory")
                experiment: Any = logger.experiment
            experiment.metrics = rows
            logger.save()


def _rows(log: Path, step: int) -> list[dict[str, str]]:
    """Read the rows before a step; a row that was cut off when the run was killed is left out."""
    with log.open(newline="") as stream:
        rows = [{name: value for name, value in row.items() if name and value} for row in csv.DictReader(stream)]
    return [row for row in rows if row.get("step", "").isdigit() and int(row["step"]) < step]


def _versions(loggers: Sequence[Logger]) -> list[Path]:
    """The folders of earlier runs, newest first."""
    found = {path for logger in loggers for path in Path(_folder(logger)).glob("version_*") if path.is_dir()}
    numbered = [(int(path.name.removeprefix("version_")), path) for path in found if path.name[8:].isdigit()]
    return [path for _, path in sorted(numbered, reverse=True)]


def _folder(logger: Logger) -> str:
    return getattr(logger, "root_dir", None) or logger.save_dir or "."


def _go_on_in(version: Path, loggers: Sequence[Logger]) -> None:
    for logger in loggers:
        if Path(_folder(logger)) == version.parent:
            logger._version = int(version.name.removeprefix("version_"))  # type: ignore[attr-defined]  # CSV, TensorBoard
