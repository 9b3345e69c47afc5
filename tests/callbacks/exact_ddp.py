"""Runs of two gloo processes that are interrupted and go on, to be started as a script: prints what differs, as JSON.

Usage: exact_ddp.py FOLDER, which holds `one.ckpt`, a checkpoint of one process.
"""

import json
import os
import signal
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from exact_runs import OPTIMIZERS, PHASES, RANK, Noisy, SaveEverywhere, Seen, differences, fit
from foreign_module import Foreign
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy

from lit_transfer.callbacks import FinetuningSchedule
from lit_transfer.data import ResumableLoader

# Three batches an epoch; the phase changes with epoch 1, which is step 3, and before its last batch, at step 5.
WHERE = (
    "epoch 0 batch 1",
    "epoch 0 batch 2",
    "epoch 0 batch 2 amid validation",
    "epoch 0 end",
    "epoch 1 batch 0",
    "epoch 1 batch 1",
)


def run(kind: str, *callbacks: Callback, **options: Any) -> dict[str, Any]:
    """Give what a checkpoint at the end would hold, and the weights of every process."""
    end = fit(
        *callbacks,
        module=partial(Foreign, OPTIMIZERS[kind]),
        beside=partial(FinetuningSchedule, PHASES),
        loader=lambda: ResumableLoader(Noisy(), 4),
        devices=2,
        strategy=DDPStrategy(process_group_backend="gloo"),
        max_epochs=2,
        **options,
    )
    ranks: list[Any] = [None, None]
    dist.all_gather_object(ranks, end["state_dict"])
    return {**end, "weights of ranks": ranks}


def places(one: Any, other: Any) -> list[str]:
    return [place for place in differences(one, other) if "val_loop.batch_progress" not in place]


class SignalOne(Callback):
    """The second process alone is signalled."""

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if RANK == 1 and trainer.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)


def signalled(folder: Path) -> dict[str, Any]:
    code: Any = "none"
    try:
        run("SGD", SignalOne(), ModelCheckpoint(folder), enable_checkpointing=True)
    except SystemExit as stopped:
        code = stopped.code
    codes: list[Any] = [None, None]
    dist.all_gather_object(codes, code)
    return {"codes": codes, "step": torch.load(folder / "last-interrupted.ckpt")["global_step"]}


def from_one_process(folder: Path) -> list[list[int]]:
    seen = Seen()
    run("SGD", seen, ckpt_path=folder / "one.ckpt")
    ranks: list[Any] = [None, None]
    dist.all_gather_object(ranks, seen.samples[1])
    return ranks


def main(folder: Path) -> dict[str, Any]:
    answers: dict[str, Any] = {}
    ends = {}
    for kind in OPTIMIZERS:
        saved = folder / kind
        ends[kind] = run(kind, SaveEverywhere(saved))
        for where in WHERE:
            resumed = run(kind, ckpt_path=saved / f"{where}.ckpt", seed=7)
            answers[f"{kind}, {where}"] = places(ends[kind], resumed)
    answers["from one process"] = from_one_process(folder)
    answers["signalled"] = signalled(folder / "signalled")
    resumed = run("SGD", ckpt_path=folder / "signalled" / "last-interrupted.ckpt", seed=7)
    answers["after the signal"] = places(ends["SGD"], resumed)
    return answers


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = main(Path(sys.argv[1]))
    if RANK == 0:
        print("ANSWER", json.dumps(found))
