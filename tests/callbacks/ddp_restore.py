"""Restores in two gloo processes, to be started as a script: prints what came of them, as JSON, from rank 0.

Usage: ddp_restore.py FOLDER, which holds what `by_hand` saved, and a checkpoint of one process.
"""

import json
import os
import sys
import warnings
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from resumable import BATCH, Foreign, data, trainer
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from lit_transfer.callbacks import TolerantRestore


class Sharded(Foreign):
    def configure_model(self) -> None:
        for layer in (self.net[0], self.net[3], self.net):
            fully_shard(layer, mesh=self.device_mesh["data_parallel"])


def loader() -> DataLoader[Any]:
    """Half of each batch for each process, together those of one process."""
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    return DataLoader(data(), BATCH // 2, sampler=DistributedSampler(data(), 2, rank, shuffle=False))


def run(
    module: Foreign, path: str, epochs: int, save: str | None = None, sharded: bool = False, folder: bool = False
) -> dict[str, Any]:
    fsdp2 = ModelParallelStrategy(2, 1, save_distributed_checkpoint=folder, process_group_backend="gloo")
    options = {"strategy": fsdp2 if sharded else "ddp", "devices": 2, "use_distributed_sampler": False}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit = trainer(epochs, TolerantRestore(), **options)
        fit.fit(module, loader(), loader(), ckpt_path=path)
    if save is not None:
        fit.save_checkpoint(save)
    state = {n: v.full_tensor() if hasattr(v, "full_tensor") else v for n, v in module.net.state_dict().items()}
    told = [str(w.message) for w in caught if "TolerantRestore" in str(w.message)]
    return {"state": {n: v.tolist() for n, v in state.items()}, "seen": module.seen[0], "told": told}


def main(folder: str) -> dict[str, Any]:
    norm = nn.LayerNorm
    return {
        "sgd": run(Foreign("sgd", norm=norm), f"{folder}/sgd.pth", 6),
        "adamw": run(Foreign("adamw", norm=norm), f"{folder}/adamw.pth", 6),
        "one to two": run(Foreign("adamw", norm=norm), f"{folder}/one.ckpt", 6, f"{folder}/two.ckpt"),
        "fsdp2": run(Sharded("sgd", norm=norm), f"{folder}/sgd.pth", 6, sharded=True),
        "to fsdp2": run(Sharded("adamw", norm=norm), f"{folder}/one.ckpt", 6, f"{folder}/full.ckpt", sharded=True),
        "folder": run(
            Sharded("adamw", norm=norm), f"{folder}/one.ckpt", 6, f"{folder}/folder.ckpt", sharded=True, folder=True
        ),
        "new head": run(Sharded("adamw", norm=norm, classes=4), f"{folder}/adamw.pth", 6, sharded=True),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    answers = main(sys.argv[1])
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print("ANSWER " + json.dumps(answers), flush=True)
