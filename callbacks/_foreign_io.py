"""A CheckpointIO that reads with a function of one's own."""

from collections.abc import Callable
from typing import Any

from lightning.fabric.plugins import CheckpointIO

__all__ = ["ForeignIO"]

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
        if "://" in str(path) and not str(path).startswith(("http://", "https://", "hf://")):
            return self.inner.load_checkpoint(path, weights_only=weights_only)  # a store that only fsspec knows
        return self.read(self.inner, str(path), weights_only)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove as `inner` does."""
        self.inner.remove_checkpoint(path)

    def teardown(self) -> None:
        """End `inner`."""
        self.inner.teardown()
