"""A callback that puts low-rank adapters (LoRA) into a module before its optimizers exist."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lit_transfer.lora import add_lora, lora_options

__all__ = ["LoRA"]


class LoRA(Callback):
    """Puts adapters into any LightningModule, which a schedule trains by the word `lora`.

    It does so in `setup`: the optimizers are made after that, from adapters and weights alike, and DDP wraps the module
    after that; in `on_fit_start` both would be too late. Weights must be there by then: those that the module was built
    with, or those of a `WeightLoading` that comes before it in the list. A module that has adapters, such as one from a
    checkpoint, keeps them.

    What trains is the schedule's affair: `FinetuningSchedule([{"train": ["head", "lora"]}])` freezes all else; without
    a schedule the weights train beside the adapters.

    Example:
        ```python
        Trainer(callbacks=[LoRA(r=8), FinetuningSchedule([{"train": ["head", "lora"]}])])
        ```
    """

    def __init__(
        self,
        r: int = 8,
        *,
        alpha: float | None = None,
        dropout: float = 0.0,
        targets: str | Sequence[str] = "backbone",
    ) -> None:
        """Remember what to add; the arguments are those of `lit_transfer.lora.add_lora`."""
        self._arguments: dict[str, Any] = {"r": r, "alpha": alpha, "dropout": dropout, "targets": targets}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Add the adapters, once.

        Raises:
            ValueError: If weights are to be loaded after that, or the targets mean no layer.
        """
        if stage != "fit" or lora_options(pl_module) is not None:
            return
        settings: Any = trainer  # Lightning does not annotate what its connectors set
        later = settings.callbacks[settings.callbacks.index(self) :]
        if any(type(callback).__name__ == "WeightLoading" for callback in later):
            raise ValueError("WeightLoading must come before LoRA in the list of callbacks: it looks for plain layers.")
        chosen = add_lora(pl_module, **self._arguments)
        options = lora_options(pl_module) or {}
        rank_zero_info(
            f"LoRA: rank {options['r']}, times {options['alpha'] / options['r']:g}, in {len(chosen)} layers."
        )
