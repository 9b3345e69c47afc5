"""Which of several checkpoints a training goes on from: the newest one that is whole."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from lit_transfer.restore._atomic import damage
from lit_transfer.weights import WeightsError, open_checkpoint


def checkpoints_in(folder: str | os.PathLike[str]) -> list[Path]:
    """Give the `.ckpt` files of a folder, the one that was written last first; none if there is no such folder."""
    folder = Path(folder)
    found = [path for path in folder.glob("*.ckpt") if path.is_file()] if folder.is_dir() else []
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)


def first_whole(paths: Iterable[Path]) -> tuple[Path | None, dict[Path, str]]:
    """Find the first file that a training can go on from.

    Returns:
        The file, or None; and what was wrong with each that comes before it.
    """
    wrong: dict[Path, str] = {}
    for path in paths:
        reason = damage(path) or _unfit(path)
        if reason is None:
            return path, wrong
        wrong[path] = reason
    return None, wrong


def _unfit(path: Path) -> str | None:
    try:
        root = open_checkpoint(path).root
    except WeightsError as error:
        return str(error)
    held = isinstance(root, Mapping) and {"loops", "optimizer_states"} <= root.keys()
    return None if held else "it holds no state of a training"
