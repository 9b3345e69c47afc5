"""What contradicts a schedule in the other callbacks of a run, or in their absence."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from lit_transfer.callbacks.weight_loading import WeightLoading
from lit_transfer.schedule import refuse_without_schedule

__all__ = ["check_scratch", "refuse_lost_schedule"]


def refuse_lost_schedule(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Refuse a fit that goes on without the schedule, or the average of weights, that the checkpoint's run had.

    Raises:
        ValueError: With what to add.
    """
    if trainer.state.fn == TrainerFn.FITTING:
        settings: Any = trainer  # Lightning does not annotate what its connectors set
        refuse_without_schedule(checkpoint.get("callbacks", {}), [c.state_key for c in settings.callbacks])
        if "current_model_state" in checkpoint and not any(isinstance(c, WeightAveraging) for c in settings.callbacks):
            raise ValueError(
                "The checkpoint's weights are an average, and its optimizer goes with others: go on with the callback "
                "that averaged them (EMA, --ema 0.999), or begin a new training with weights=PATH."
            )


def check_scratch(trainer: Trainer, module: LightningModule) -> None:
    """Refuse to train from scratch with weights that another callback loads, and tell what cannot be known.

    Raises:
        ValueError: A WeightLoading is among the callbacks.
    """
    settings: Any = trainer  # Lightning does not annotate what its connectors set
    loading = next((c for c in settings.callbacks if isinstance(c, WeightLoading)), None)
    if loading is not None:
        raise ValueError(
            f"Preset 'from_scratch' trains random weights, and WeightLoading loads {loading.path!r}: leave one of the "
            "callbacks out, or use the preset 'full' to train from these."
        )
    rank_zero_info(
        f"FinetuningSchedule: from_scratch: everything trains from the weights that {type(module).__name__} has; no "
        "backbone in it tells of pretrained ones."
    )
