"""What a run leaves behind that ended before it measured anything: nothing."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lightning.pytorch import Trainer

_OF_THE_START = {"config.yaml", "hparams.yaml"}  # what Lightning writes before the first batch


@contextmanager
def nothing_half_written(trainer: Trainer) -> Iterator[None]:
    """Remove the folders that the loggers made for a run, if an error ended it with nothing in them but its config.

    Lightning makes them before the data is looked at, so that each misspelt column would leave one behind.
    """
    folders = [Path(folder) for logger in trainer.loggers if (folder := getattr(logger, "log_dir", None))]
    new = [folder for folder in folders if not folder.exists()]
    try:
        yield
    except Exception:
        if trainer.is_global_zero:
            for folder in new:
                _remove(folder)
        raise


def _remove(folder: Path) -> None:
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= _OF_THE_START:
        shutil.rmtree(folder)
        with suppress(OSError):  # the folder of all runs, if this was the first
            folder.parent.rmdir()
