"""What runs on GPUs only: AMP with float16, FSDP and SyncBatchNorm as Lightning starts them there."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_module import Batches, Foreign, trainer, val_loader
from torch.optim import AdamW

from lit_transfer.callbacks import FinetuningSchedule, TrainabilityAudit

PHASES: list[Any] = [
    {"train": "head", "warmup": 2},
    {"at": {"epoch": 1}, "train": ["head", "encoder.2"]},
    {"at": {"epoch": 2}, "train": "all", "layer_decay": 0.5},
]
gpus = torch.cuda.device_count()
one_gpu = pytest.mark.skipif(gpus < 1, reason="needs a CUDA GPU")
two_gpus = pytest.mark.skipif(gpus < 2, reason="needs two CUDA GPUs: SyncBatchNorm in train mode runs nowhere else")


@one_gpu
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_automatic_mixed_precision(precision: str) -> None:
    module = Foreign(AdamW)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    made = trainer(FinetuningSchedule(PHASES[:2]), TrainabilityAudit(), accelerator="gpu", precision=precision)
    made.fit(module, Batches(), val_loader())
    moved = {name[:9] for name, value in module.cpu().state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"encoder.2", "classifie"}


@one_gpu
def test_fsdp_on_its_own_device() -> None:
    made = trainer(FinetuningSchedule(PHASES), TrainabilityAudit(), accelerator="gpu", strategy="fsdp")
    made.fit(Foreign(AdamW), Batches(), val_loader())
    assert made.state.finished


@two_gpus
def test_sync_batchnorm_that_trains_from_the_second_phase_on() -> None:
    command = [sys.executable, str(Path(__file__).with_name("ddp_fit.py")), "--gpus"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    assert lines, done.stderr[-3000:]
    answer = json.loads(lines[0].removeprefix("ANSWER "))
    assert answer == {"apart": [0.0] * 4, "kinds": ["SyncBatchNorm"] * 3}
