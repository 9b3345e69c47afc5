"""Between a strategy and its files: reading with a function of one's own, and what Lightning reads as it is."""

import pickle
from collections.abc import Callable
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.strategies import Strategy

from lit_transfer.restore import is_lightning, plain_root
from lit_transfer.weights import Checkpoint, WeightsError, open_checkpoint

__all__ = ["ForeignIO", "guard", "read_lightning", "unguard"]

Read = Callable[[CheckpointIO, str, bool | None], dict[str, Any]]


class ForeignIO(CheckpointIO):
    """Hands loading to `read(inner, path, weights_only)`; saving and removing stay with `inner`."""

    def __init__(self, inner: CheckpointIO, read: Read) -> None:
        self.inner, self.read = inner, read

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Save as `inner` does."""
        self.inner.save_checkpoint(checkpoint, path, storage_options)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read any checkpoint; tensors come to the CPU, whatever device the file names."""
        return self.read(self.inner, str(path), weights_only)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove as `inner` does."""
        self.inner.remove_checkpoint(path)

    def teardown(self) -> None:
        """End `inner`."""
        self.inner.teardown()


def read_lightning(
    inner: CheckpointIO, path: str, weights_only: bool | None, opened: Checkpoint, told: list[str]
) -> dict[str, Any]:
    """Read a checkpoint of Lightning's own; what `weights_only` refuses is read without running anything in it.

    Args:
        inner: The strategy's CheckpointIO.
        path: The file.
        weights_only: What the user gave to `fit`.
        opened: The same file.
        told: Receives what is left out, being no plain value.
    """
    try:
        checkpoint = inner.load_checkpoint(path, weights_only=weights_only)
    except pickle.UnpicklingError:
        lost: list[str] = []
        checkpoint = plain_root(opened, lost)
        told += [f"{place}: no plain value" for place in lost]
    for name, empty in (("callbacks", {}), ("optimizer_states", []), ("lr_schedulers", [])):
        checkpoint.setdefault(name, empty)  # a checkpoint that was saved with its weights only
    return checkpoint


def guard(strategy: Strategy) -> bool:
    """Refuse foreign files where the strategy reads without its CheckpointIO: FSDP, ModelParallel, DeepSpeed.

    Returns:
        Whether the strategy is such a one.
    """
    kind = type(strategy)
    if kind.load_checkpoint is Strategy.load_checkpoint:
        return False

    def load_checkpoint(checkpoint_path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if not is_lightning(open_checkpoint(checkpoint_path)):
            raise WeightsError(
                f"{checkpoint_path} was not written by Lightning, and {kind.__name__} reads checkpoints by itself, in "
                "its own way. Restore the file once with strategy='ddp' or on one device and save it with "
                "trainer.save_checkpoint, or take its weights only, with the callback WeightLoading."
            )
        return kind.load_checkpoint(strategy, checkpoint_path, *args, **kwargs)

    vars(strategy)["load_checkpoint"] = load_checkpoint
    return True


def unguard(strategy: Strategy) -> None:
    """Undo `guard`."""
    vars(strategy).pop("load_checkpoint", None)
