"""FinetuningSchedule beside BackboneFinetuning and finetuning-scheduler: ranks, resume, statistics, test(), groups.

Run: python tests/benchmarks/finetuning_callbacks.py 2>/dev/null
finetuning-scheduler is compared if it is installed.

Each measure is of the same small network in float64 on the CPU, whose backbone is frozen for one epoch of four:
  ranks apart    largest difference between the parameters of two gloo processes at the end of the fit
  resume         largest difference between an uninterrupted fit and one resumed after the unfreezing
  statistics     largest change of a frozen BatchNorm's running mean
  test()         frozen parameter tensors after fit, and after trainer.test()
  equal values   parameter tensors that no optimizer has, where head and backbone start with equal biases
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lit_transfer import param_groups
from lit_transfer.callbacks import FinetuningSchedule

EPOCHS, UNFREEZE = 4, 1


class Net(LightningModule):
    """A backbone with batch norm and a head; the optimizer is built as each callback asks for it."""

    def __init__(self, kind: str, *, norm: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.example_input_array = torch.zeros(2, 8, dtype=torch.float64)
        hidden = nn.BatchNorm1d(16) if norm else nn.Identity()
        self.backbone = nn.Sequential(nn.Linear(8, 16), hidden, nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
        for part in (self.backbone[0], self.backbone[3], self.head[0]):
            nn.init.zeros_(part.bias)
        self.double()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self.head(self.backbone(batch[0])), batch[1]), sync_dist=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> Any:
        if self.kind == "FinetuningSchedule":
            return torch.optim.SGD(param_groups(self, 0.05, 0.0), momentum=0.9)
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.05, momentum=0.9)


def callbacks(kind: str, names: list[str], at: int = UNFREEZE) -> list[Callback]:
    if kind == "BackboneFinetuning":
        return [BackboneFinetuning(at, lambda epoch: 1.0, backbone_initial_lr=0.05, should_align=False)]
    if kind == "FinetuningScheduler":
        from finetuning_scheduler import FinetuningScheduler

        phases = {
            0: {"params": [n for n in names if n.startswith("head")], "max_transition_epoch": at},
            1: {"params": [n for n in names if n.startswith("backbone")], "lr": 0.05, "max_transition_epoch": EPOCHS},
        }
        return [FinetuningScheduler(ft_schedule=phases, epoch_transitions_only=True, restore_best=False)]
    return [FinetuningSchedule([{"train": "head"}, {"at": {"epoch": at}, "train": "all"}])]


def data(seed: int, count: int = 64) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 8, generator=generator, dtype=torch.float64) + 1
    return TensorDataset(x, (x.sum(1) > 8).long())


def trainer(*extra: Callback, **options: Any) -> Trainer:
    settings: dict[str, Any] = {
        "max_epochs": EPOCHS,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": tempfile.mkdtemp(),
        "callbacks": list(extra),
    }
    return Trainer(**settings | options)


def fit(
    kind: str, *extra: Callback, at: int = UNFREEZE, norm: bool = True, ckpt: str | None = None, **options: Any
) -> Any:
    module = Net(kind, norm=norm)
    names = [name for name, _ in module.named_parameters()]
    made = trainer(*callbacks(kind, names, at), *extra, **options)
    made.fit(module, DataLoader(data(0), 8), DataLoader(data(1), 32), ckpt_path=ckpt, weights_only=False)
    return module, made


class Keep(Callback):
    """A checkpoint at the end of the third epoch."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 2:
            trainer.save_checkpoint(self.path)


def ranks_apart(kind: str) -> float:
    """In a pair of processes that Lightning starts; called by each."""
    module, _ = fit(kind, norm=False, devices=2, strategy="ddp")
    mine = torch.cat([p.detach().flatten() for p in module.parameters()])
    both = [torch.zeros_like(mine) for _ in range(2)]
    dist.all_gather(both, mine)
    return float((both[0] - both[1]).abs().max())


def resumed(kind: str) -> float:
    path = f"{tempfile.mkdtemp()}/kept.ckpt"
    whole, _ = fit(kind, Keep(path))
    again, _ = fit(kind, ckpt=path)
    pairs = zip(whole.state_dict().values(), again.state_dict().values(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def statistics(kind: str) -> float:
    before = Net(kind).backbone[1].running_mean.clone()
    module, _ = fit(kind, at=EPOCHS - 1, max_epochs=EPOCHS - 1)
    return float((module.backbone[1].running_mean - before).abs().max())


def after_test(kind: str) -> str:
    module, made = fit(kind)
    counts = [sum(not p.requires_grad for p in module.parameters())]
    made.test(module, DataLoader(data(1), 32), verbose=False)
    return " -> ".join(str(n) for n in [*counts, sum(not p.requires_grad for p in module.parameters())])


def not_owned(kind: str) -> int:
    module, made = fit(kind, at=0 if kind == "BackboneFinetuning" else 1, max_epochs=2)
    held = {id(p) for o in made.optimizers for group in o.param_groups for p in group["params"]}
    return sum(id(p) not in held for p in module.parameters())


MEASURES = {"resume": resumed, "statistics": statistics, "test()": after_test, "equal values": not_owned}


def attempt(measure: Any, kind: str) -> str:
    try:
        return str(measure(kind))
    except Exception as error:
        return f"failed: {type(error).__name__}: {str(error)[:90]}"


def main() -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--ranks"]:
        apart = ranks_apart(sys.argv[2])
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print("ANSWER", json.dumps(apart))
        return
    kinds = ["BackboneFinetuning", "FinetuningScheduler", "FinetuningSchedule"]
    if importlib.util.find_spec("finetuning_scheduler") is None:
        kinds.remove("FinetuningScheduler")
    for kind in kinds:
        done = subprocess.run([sys.executable, __file__, "--ranks", kind], capture_output=True, text=True, check=False)
        answers = [line for line in done.stdout.splitlines() if line.startswith("ANSWER")]
        row = {"ranks apart": answers[-1].split()[1] if answers else f"failed: {done.stderr.splitlines()[-1][:90]}"}
        row |= {name: attempt(measure, kind) for name, measure in MEASURES.items()}
        print(kind, *(f"  {name}: {value}" for name, value in row.items()), sep="\n", flush=True)


if __name__ == "__main__":
    main()
