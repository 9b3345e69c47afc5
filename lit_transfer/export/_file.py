"""A file that is whole or absent, and never in another one's place by accident."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


def check_target(path: Path, checkpoint: Path | None, *, force: bool) -> None:
    """Refuse a place where no file can or should be written.

    Raises:
        FileNotFoundError: If there is no such folder.
        FileExistsError: If there is a file and `force` is not given.
        ValueError: If it is the checkpoint itself.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} for {path.name}.")
    if path.exists() and checkpoint is not None and path.samefile(checkpoint):
        raise ValueError(f"{path} is the checkpoint itself: give another name.")
    if path.exists() and not force:
        raise FileExistsError(f"{path} is there already: force=True (--force) replaces it.")


@contextlib.contextmanager
def whole_or_absent(path: Path) -> Iterator[Path]:
    """Give a file beside `path` to write to, which takes its name when all went well and is removed when not.

    Raises:
        OSError: If it cannot be written.
    """
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}{path.suffix}")
    try:
        try:
            temporary.touch(exist_ok=False)  # before the work: a folder that cannot be written to is told at once
        except OSError as error:
            raise OSError(error.errno, f"{path} cannot be written: {error.strerror}") from error
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
