"""Callbacks for any LightningModule: hooks and state only; what they do lives in rooms of its own."""

from lit_transfer.callbacks.finetuning_schedule import FinetuningSchedule

__all__ = ["FinetuningSchedule"]
