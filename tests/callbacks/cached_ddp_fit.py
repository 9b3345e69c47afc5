"""Fits in two gloo processes, to be started as a script: prints what was computed and how far runs are apart, as JSON.

Usage: cached_ddp_fit.py FOLDER. Starting the processes is what takes long, so that one pair fits all cases.
"""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from cached_module import READS, Module, furthest, train_loader, trainer, val_loader
from lightning.pytorch import LightningDataModule

from lit_transfer.callbacks import FeatureCaching, FinetuningSchedule

PHASES: dict[str, Any] = {
    "probe": "linear_probe",
    "moves": [{"train": ["head"]}, {"at": {"epoch": 1}, "train": ["head", "stage1"]}],
}


class Data(LightningDataModule):
    """Lightning notes the arguments of loaders that are made in a hook, and makes them again from these."""

    def train_dataloader(self) -> Any:
        return train_loader(workers=1)

    def val_dataloader(self) -> Any:
        return val_loader(workers=1)


def fit(case: str, folder: str, given: str, cached: bool) -> Module:
    module = Module()
    callbacks = [FinetuningSchedule(PHASES[case])]
    if cached:
        callbacks.insert(0, FeatureCaching("encoder", fast=False, folder=Path(folder) / case / given))
    torch.manual_seed(7)
    made = trainer(*callbacks, devices=2, strategy="ddp")
    if given == "hooks":
        made.fit(module, datamodule=Data())
    else:
        made.fit(module, train_loader(), val_loader())
    return module


def compare(case: str, folder: str, given: str) -> dict[str, Any]:
    plain = fit(case, folder, given, cached=False)
    READS.value.zero_()
    cached = fit(case, folder, given, cached=True)
    values = torch.cat([value.double().flatten() for value in cached.state_dict().values()])
    return {
        "apart": furthest(plain, cached),
        "val": plain.val_losses == cached.val_losses,
        "reads": READS.value.item(),
        "computed": cached.computed,
        "values": values.tolist(),
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    answers = {
        f"{case} {given}": compare(case, sys.argv[1], given) for case in PHASES for given in ("loaders", "hooks")
    }
    rank = os.environ.get("LOCAL_RANK", "0")
    Path(sys.argv[1], f"rank{rank}.json").write_text(json.dumps(answers))
