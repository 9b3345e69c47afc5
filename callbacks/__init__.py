"""Callbacks for any LightningModule: hooks and state only; what they do lives in rooms of its own."""

from lit_transfer.callbacks.ema import EMA
from lit_transfer.callbacks.feature_caching import FeatureCaching
from lit_transfer.callbacks.finetuning_schedule import FinetuningSchedule
from lit_transfer.callbacks.l2_sp import L2SP
from lit_transfer.callbacks.lora import LoRA
from lit_transfer.callbacks.phased_stopping import PhasedStopping
from lit_transfer.callbacks.stage_norms import StageNorms
from lit_transfer.callbacks.tolerant_restore import TolerantRestore
from lit_transfer.callbacks.trainability_audit import TrainabilityAudit
from lit_transfer.callbacks.weight_loading import WeightLoading

__all__ = [
    "EMA",
    "L2SP",
    "FeatureCaching",
    "FinetuningSchedule",
    "LoRA",
    "PhasedStopping",
    "StageNorms",
    "TolerantRestore",
    "TrainabilityAudit",
    "WeightLoading",
]
