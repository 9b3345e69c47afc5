"""SIGKILL loses nothing: float32, one thread, CPU, `fast=False`, equal bit for bit to runs without that caching."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cached_module import READS, TRAIN, VAL, Counter, Images, Module, furthest, trainer, val_loader
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.utils.data import DataLoader

from lit_transfer.callbacks import FeatureCaching, FinetuningSchedule, TolerantRestore
from lit_transfer.data import ImageFolderData
from lit_transfer.features import _filling, list_entries
from lit_transfer.modules import ImageClassifier

LOOKED = 2 * 4  # samples that are drawn to look at, of both sets
ARMED = Counter()


def killed(action: Callable[[], object]) -> None:
    """Do something in a process of its own, and see it killed."""
    process = multiprocessing.get_context("fork").Process(target=action)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


class Fatal(Images):
    """Kills its process at sample 25, if it is armed, when features are computed: the samples were drawn before."""

    def __getitem__(self, index: int) -> Any:
        if ARMED.value and index == 25 and READS.value > LOOKED + 2 * VAL + TRAIN:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_run_that_is_killed_while_it_fills_leaves_what_it_wrote_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*callbacks: Callback) -> Module:
        module = Module()
        made = trainer(FinetuningSchedule("linear_probe"), *callbacks, folder=tmp_path)
        torch.manual_seed(7)
        READS.value.zero_()
        made.fit(module, DataLoader(Fatal(TRAIN), 8, shuffle=True, drop_last=True), val_loader())
        return module

    def caching() -> FeatureCaching:
        return FeatureCaching("encoder", fast=False, folder=tmp_path / "cache")

    monkeypatch.setattr(_filling, "_SYNC_SECONDS", 0.0)  # each batch of these few is put on disk
    ARMED.value.fill_(1)
    killed(lambda: run(caching()))
    ARMED.value.zero_()
    done = {about["split"]: share for _, about, share in list_entries(tmp_path / "cache")}
    assert done == {"val": 1.0, "train": 3 / 5}
    plain, cached = run(), run(caching())
    assert READS.value.item() == LOOKED + 2 * 8 + 13, "the last two batches, their own samples drawn twice"
    assert furthest(plain, cached) == 0
    assert plain.val_losses == cached.val_losses


class DiesBehind(Callback):
    """Saves a checkpoint at step 6, in the middle of an epoch, and kills the process behind step 7."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 6:
            trainer.save_checkpoint(self.path)
        if trainer.global_step == 7:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_run_that_is_killed_in_the_middle_of_an_epoch_goes_on_with_what_is_stored(
    photos: Path, tmp_path: Path, told: Any
) -> None:
    computed: list[int] = []

    def run(*callbacks: Callback, ckpt_path: Path | None = None) -> ImageClassifier:
        torch.manual_seed(0 if ckpt_path is None else 1)
        module = ImageClassifier(nn.Sequential(*Module().encoder, nn.Linear(16, 7)), None, head="mlp", dropout=0.2)
        module.backbone.register_forward_pre_hook(lambda _, args: computed.append(args[0][0].numel()))
        data = ImageFolderData(photos, 4, augment="none", image_size=16, num_workers=0)
        made = trainer(FinetuningSchedule("linear_probe"), TolerantRestore(), *callbacks, folder=tmp_path)
        made.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
        return module

    def caching() -> FeatureCaching:
        return FeatureCaching(fast=False, folder=tmp_path / "cache")

    plain = run()
    file = tmp_path / "mid.ckpt"
    killed(lambda: run(caching(), DiesBehind(file)))
    assert [share for *_, share in list_entries(tmp_path / "cache")] == [1.0, 1.0]
    computed.clear()
    cached = run(caching(), ckpt_path=file)
    assert furthest(plain, cached) == 0
    assert sum("found in" in text for text in told()) == 2
    assert computed.count(3 * 16 * 16) == 2 * (8 + 2), "of both sets, 8 draws of a batch and 2 runs to look at them"
