"""Between a strategy and its checkpoint files: written whole or not at all, verified before they are read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO, TorchCheckpointIO
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities import rank_zero_warn

from lit_transfer.restore import checkpoints_in, damage, first_whole, save_atomically
from lit_transfer.weights import WeightsError

__all__ = ["CheckedIO", "install", "uninstall"]

Read = Callable[[CheckpointIO, str, bool | None], dict[str, Any]]


class CheckedIO(CheckpointIO):
    """Stands before a CheckpointIO: writes atomically with a checksum, and verifies what is read.

    Lightning resolves `ckpt_path="last"` before any callback could choose another file, so the choice is made here: a
    damaged file that is named `last...` is passed over for the one that was written before it. Any other damaged file
    was asked for by its name, and is an error.
    """

    def __init__(self, inner: CheckpointIO, read: Read | None = None) -> None:
        """Remember whom to ask.

        Args:
            inner: The strategy's own CheckpointIO. One that is not Lightning's plain one writes by itself.
            read: Reads a file that is whole, from `inner`, the path, and `weights_only` as the user gave it; None for
                what `inner` does.
        """
        self.inner, self.read = inner, read

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint, whole or not at all.

        Raises:
            OSError: It cannot be written; a file of that name is as it was.
        """
        if type(self.inner) is TorchCheckpointIO and storage_options is None and _is_local_file_protocol(path):
            save_atomically(checkpoint, path)
        else:
            self.inner.save_checkpoint(checkpoint, path, storage_options)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Verify a checkpoint, and read it, or the one before it.

        Raises:
            WeightsError: It is damaged, and so is every other that may take its place.
        """
        if _is_local_file_protocol(path) and Path(path).is_file():
            path = str(_whole(Path(path)))
        ours = "://" not in str(path) or str(path).startswith(("http://", "https://", "hf://"))
        if self.read is not None and ours:  # other stores only fsspec knows
            return self.read(self.inner, str(path), weights_only)
        options = {} if map_location is None else {"map_location": map_location}
        return self.inner.load_checkpoint(path, weights_only=weights_only, **options)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove as `inner` does."""
        self.inner.remove_checkpoint(path)

    def teardown(self) -> None:
        """End `inner`."""
        self.inner.teardown()


def _whole(path: Path) -> Path:
    reason = damage(path)
    if reason is None:
        return path
    before, wrong = first_whole(checkpoints_in(path.parent))
    if before is None or not path.name.startswith(ModelCheckpoint.CHECKPOINT_NAME_LAST):
        offer = f"{before} is whole: give it as ckpt_path" if before else "no other one in its folder is whole"
        raise WeightsError(f"the checkpoint {path} is damaged: {reason}; {offer}")
    passed = [f"{name}: {why}" for name, why in {path: reason, **wrong}.items()]
    rank_zero_warn(f"Going on from {before}, since newer checkpoints cannot be used: {'; '.join(passed)}.")
    return before


def install(strategy: Strategy, read: Read | None = None) -> None:
    """Let a strategy write and read through a CheckedIO; one that is there already is replaced.

    Where checkpoints are written by a thread (AsyncCheckpointIO), it is the thread that writes through it.
    """
    uninstall(strategy)
    io = strategy.checkpoint_io
    if isinstance(io, _WrappingCheckpointIO) and io.checkpoint_io is not None:
        io._checkpoint_io = CheckedIO(io.checkpoint_io, read)
    else:
        strategy.checkpoint_io = CheckedIO(io, read)


def uninstall(strategy: Strategy) -> None:
    """Give a strategy its own CheckpointIO back."""
    io = strategy.checkpoint_io
    if isinstance(io, CheckedIO):
        strategy.checkpoint_io = io.inner
    elif isinstance(io, _WrappingCheckpointIO) and isinstance(io.checkpoint_io, CheckedIO):
        io._checkpoint_io = io.checkpoint_io.inner
