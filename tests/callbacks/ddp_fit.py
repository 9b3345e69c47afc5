"""Fits in two gloo processes, to be started as a script: prints how far the ranks are apart, as JSON, from rank 0.

Usage: ddp_fit.py FOLDER. Starting the processes is what takes long, so that one pair fits all cases after each other.
`ddp_fit.py --gpus` fits the one case that two GPUs are needed for.
"""

import json
import os
import sys
import warnings
from typing import Any

import torch
import torch.distributed as dist
from foreign_module import Foreign, batch, trainer
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import FSDPPrecision
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision, fully_shard, fully_sharded_data_parallel
from torch.distributed.fsdp._common_utils import _FSDPDeviceHandle
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from lit_transfer import freeze, unfreeze
from lit_transfer.callbacks import FinetuningSchedule, TrainabilityAudit
from lit_transfer.freezing import is_held

PHASES: list[Any] = [
    {"train": "head"},
    {"at": {"epoch": 1}, "train": ["head", "encoder.2"]},
    {"at": {"step": 10}, "train": "all"},
]


class Ranks(Callback):
    """The largest difference between the ranks' parameters after each epoch."""

    def __init__(self) -> None:
        self.apart: list[float] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size > 1:
            mine = torch.cat([p.detach().flatten() for p in pl_module.parameters()])
            others = [torch.zeros_like(mine) for _ in range(dist.get_world_size())]
            dist.all_gather(others, mine)
            self.apart.append(max((other - mine).abs().max().item() for other in others))


class HookedDDP(DDPStrategy):
    """Registers communication hooks on the CPU too: Lightning does so on CUDA only."""

    def _register_ddp_hooks(self) -> None:
        if self._ddp_comm_hook:
            self.model.register_comm_hook(self._ddp_comm_state, self._ddp_comm_hook)


class SaveAt(Callback):
    def __init__(self, folder: str) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step in {4, 6, 11}:
            trainer.save_checkpoint(f"{self.folder}/{trainer.global_step}.ckpt")


class Share:
    """This rank's part of the global batches of 8, an equal one each; keeps its place."""

    def __init__(self, rank: int, ranks: int) -> None:
        self.rank, self.ranks, self.place = rank, ranks, 0

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Any:
        start, self.place = self.place, 0
        for number in range(start, 4):
            self.place = (number + 1) % 4
            images, labels = batch(number)
            yield images.double()[self.rank :: self.ranks], labels[self.rank :: self.ranks]

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


def build() -> Foreign:
    """Without batch norm, whose statistics differ with the batch that each rank sees."""
    module = Foreign(dropout=0.0)
    for unit in module.encoder:
        unit[1] = torch.nn.Identity()
    return module.double()


def powersgd() -> dict[str, Any]:
    state = PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=2, min_compression_rate=0.5)
    return {"ddp_comm_hook": powerSGD_hook, "ddp_comm_state": state}


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "static_graph": {"ddp": {"static_graph": True}},
    "find_unused": {"ddp": {"find_unused_parameters": True}},
    "bucket_view": {"ddp": {"gradient_as_bucket_view": True}},
    "accumulate": {"accumulate_grad_batches": 3},
    "powersgd": {"powersgd": True},
    "compile": {"compile": True},
}


def fit(case: str, folder: str, ckpt_path: str | None = None) -> dict[str, Any]:
    options = dict(CASES[case])
    module = build()
    if options.pop("compile", False):
        module.encoder = torch.compile(module.encoder, backend="aot_eager")
    hook = powersgd() if options.pop("powersgd", False) else {}
    strategy = HookedDDP(process_group_backend="gloo", **options.pop("ddp", {}), **hook)
    ranks, schedule = Ranks(), [FinetuningSchedule(PHASES), TrainabilityAudit(check_ranks=True)]
    saving = [SaveAt(folder)] if ckpt_path is None and case == "plain" else []
    options = {"devices": 2, "strategy": strategy, "num_sanity_val_steps": 0, "max_epochs": 4} | options
    made = trainer(*schedule, ranks, *saving, **options)
    made.fit(module, Share(int(os.environ.get("LOCAL_RANK", 0)), 2), ckpt_path=ckpt_path, weights_only=True)
    values = torch.cat([p.detach().flatten() for p in module.parameters()])
    return {"apart": ranks.apart, "values": values.tolist()}


class Unfreeze(Callback):
    """What users write, and what BackboneFinetuning does: nothing rebuilds the reducer."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            unfreeze(pl_module, "encoder")


def refused(*callbacks: Callback) -> dict[str, Any]:
    """What the audit says of a fit that lets the ranks drift apart."""
    module = build()
    freeze(module, "encoder")
    strategy = HookedDDP(process_group_backend="gloo")
    made = trainer(Unfreeze(), *callbacks, devices=2, strategy=strategy, num_sanity_val_steps=0, max_epochs=4)
    try:
        made.fit(module, Share(int(os.environ.get("LOCAL_RANK", 0)), 2))
    except (ValueError, RuntimeError) as error:
        return {"told": str(error)}
    return {"told": "nothing"}


class Unwatched(TrainabilityAudit):
    """Without a note of what the reducer covers, as under a strategy that is not known: only the ranks can tell."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        vars(trainer.strategy.model).pop("_lit_transfer_covered")


class Sharded(Foreign):
    """Shards itself as the users of ModelParallelStrategy do (FSDP2)."""

    def __init__(self) -> None:
        super().__init__(lambda groups: torch.optim.SGD(groups, momentum=0.9, foreach=False), dropout=0.0)
        for unit in self.encoder:
            unit[1] = torch.nn.Identity()

    def configure_model(self) -> None:
        for part in (*self.encoder, self.encoder, self.classifier):
            fully_shard(part, mesh=self.device_mesh["data_parallel"])


def sharded() -> dict[str, Any]:
    module = Sharded().double()
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo")
    callbacks = FinetuningSchedule(PHASES), TrainabilityAudit(check_ranks=True)
    made = trainer(*callbacks, devices=2, strategy=strategy, num_sanity_val_steps=0, max_epochs=4)
    made.fit(module, Share(int(os.environ.get("LOCAL_RANK", 0)), 2))
    return {"values": torch.cat([p.full_tensor().detach().flatten() for p in module.parameters()]).tolist()}


class FSDPOnCPU(FSDPStrategy):
    """FSDP on the CPU, which torch can do and asks not to: it looks for an accelerator and nothing else stops it."""

    def _setup_model(self, model: torch.nn.Module) -> torch.nn.Module:
        def on_cpu(state: Any, *_: Any) -> Any:
            state._device_handle = _FSDPDeviceHandle.from_device(torch.device("cpu"))
            return state

        fully_sharded_data_parallel._init_device_handle = on_cpu
        return super()._setup_model(model)


class Double(FSDPPrecision):
    """Float64, which Lightning's FSDP would turn into float32."""

    def convert_module(self, module: torch.nn.Module) -> torch.nn.Module:
        return module

    def convert_input(self, data: Any) -> Any:
        return data


class Gathered(Callback):
    """The whole parameters at the end, in the order of the module."""

    values: list[float]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with FullyShardedDataParallel.summon_full_params(trainer.strategy.model):
            self.values = torch.cat([p.detach().flatten() for p in pl_module.parameters()]).tolist()


def flattened(**options: Any) -> dict[str, Any]:
    """FSDP, with the units apart or all in one flat parameter of which a part is frozen."""
    double = MixedPrecision(param_dtype=torch.float64, reduce_dtype=torch.float64, buffer_dtype=torch.float64)
    strategy = FSDPOnCPU(process_group_backend="gloo", mixed_precision=double, **options)
    gathered = Gathered()
    callbacks = FinetuningSchedule(PHASES), TrainabilityAudit(), gathered
    apart = {"devices": 2, "strategy": strategy, "plugins": [Double("32-true")]}
    made = trainer(*callbacks, num_sanity_val_steps=0, max_epochs=4, **apart)
    made.fit(build(), Share(int(os.environ.get("LOCAL_RANK", 0)), 2))
    return {"values": gathered.values}


def unseen() -> dict[str, Any]:
    """FSDP without any of our callbacks."""
    made = trainer(devices=2, strategy=FSDPOnCPU(process_group_backend="gloo"), num_sanity_val_steps=0)
    try:
        made.fit(build(), Share(int(os.environ.get("LOCAL_RANK", 0)), 2))
    except ValueError as error:
        return {"told": str(error)}
    return {"told": "nothing"}


class Normed(Foreign):
    """With batch norm, which is frozen throughout, so that it runs on the CPU as SyncBatchNorm too."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0)
        for buffer in self.encoder.buffers():
            buffer.add_(1)


class Kinds(Ranks):
    """The classes of the norm layers while training, too."""

    kinds: list[str]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        self.kinds = [type(unit[1]).__name__ for unit in pl_module.encoder]


STILL: list[Any] = [
    {"train": "head"},
    {"at": {"epoch": 1}, "train": ["head", "encoder.2.0"]},
    {"at": {"step": 10}, "train": ["head", "re:encoder.[0-2].0"]},
]


def synchronized(ranks: int) -> dict[str, Any]:
    """Lightning converts the norm layers after `setup`; DDP refuses them on the CPU, where they run if frozen."""
    DistributedDataParallel._passing_sync_batchnorm_handle = lambda self, module: None
    module, seen = Normed().double(), Kinds()
    callbacks = FinetuningSchedule(STILL), TrainabilityAudit(check_ranks=ranks > 1), seen
    several = {"devices": 2, "strategy": HookedDDP(process_group_backend="gloo"), "sync_batchnorm": True}
    made = trainer(*callbacks, num_sanity_val_steps=0, max_epochs=4, **(several if ranks > 1 else {}))
    made.fit(module, Share(int(os.environ.get("LOCAL_RANK", 0)), 2) if ranks > 1 else Share(0, 1))
    held = [is_held(unit[1]) and not unit[1].weight.requires_grad for unit in module.encoder]
    values = torch.cat([value.double().flatten() for value in module.state_dict().values()])
    return {"values": values.tolist(), "apart": seen.apart, "kinds": seen.kinds, "held": held}


def on_gpus() -> dict[str, Any]:
    """SyncBatchNorm that trains from the second phase on."""
    module, seen = Foreign(dropout=0.0), Kinds()
    callbacks = FinetuningSchedule(PHASES), TrainabilityAudit(check_ranks=True), seen
    several = {"accelerator": "gpu", "devices": 2, "strategy": "ddp", "sync_batchnorm": True}
    made = trainer(*callbacks, num_sanity_val_steps=0, max_epochs=4, **several)
    made.fit(module, DataLoader(TensorDataset(*batch(0, 64)), 8))
    return {"apart": seen.apart, "kinds": seen.kinds}


def single() -> dict[str, Any]:
    """The same steps in one process, on the global batches."""
    module = build()
    made = trainer(FinetuningSchedule(PHASES), num_sanity_val_steps=0, max_epochs=4)
    made.fit(module, Share(0, 1))
    return {"values": torch.cat([p.detach().flatten() for p in module.parameters()]).tolist()}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder = sys.argv[1]
    if folder == "--gpus":
        print("ANSWER", json.dumps(on_gpus()))
        sys.exit()
    answers = {case: fit(case, folder) for case in CASES}
    answers |= {f"resumed {step}": fit("plain", folder, f"{folder}/{step}.ckpt") for step in (6, 11)}
    answers["sync_batchnorm"] = synchronized(2)
    answers["sharded"] = sharded()
    answers["flattened"] = flattened()
    answers["flattened by unit"] = flattened(auto_wrap_policy={torch.nn.Sequential})
    answers["unseen"] = unseen()
    answers["drift"] = refused(Unwatched(check_ranks=True))
    answers["uncovered"] = refused(TrainabilityAudit())
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print("ANSWER", json.dumps(answers | {"single": single(), "single with norms": synchronized(1)}))
