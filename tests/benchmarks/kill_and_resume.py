"""Trainings killed at random instants, and resumed: python tests/benchmarks/kill_and_resume.py [KILLS] [SEED]

Each training runs in a process of its own and is killed (SIGKILL) at an instant drawn evenly from the time after its
first step. Then it goes on from the newest whole checkpoint, to its end. Told is

  equal      how many ended bitwise like the uninterrupted one: weights, moments, scheduler, counters, random state
  torn       how many files under the name of a checkpoint were damaged after a kill
  amid       how many kills came while a checkpoint was being written
  from start how many came before the first checkpoint was there

Float32, CPU, one thread; dropout, random augmentation, a checkpoint every third step; every fourth training reads its
data with two worker processes.
"""

import hashlib
import io
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset

from lit_transfer.callbacks import TolerantRestore
from lit_transfer.data import ResumableLoader
from lit_transfer.restore import checkpoints_in, damage, first_whole

EPOCHS, SAMPLES, BATCH = 3, 70, 7


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Vectors with augmentation at random."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        vector = torch.randn(64, generator=torch.Generator().manual_seed(index))
        return vector + 0.1 * torch.randn(64), torch.tensor(index % 3)


class Net(LightningModule):
    """Large enough that writing a checkpoint takes a good part of the time: 430,000 numbers and their moments."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(
            nn.Linear(64, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Dropout(), nn.Linear(512, 768), nn.Linear(768, 3)
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), 1e-3)
        scheduler = OneCycleLR(optimizer, 1e-3, total_steps=self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class FirstStep(Callback):
    """Tells the parent that the first step is done."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def on_train_batch_end(self, *_: Any) -> None:
        if self.pipe >= 0:
            os.write(self.pipe, b"1")
            self.pipe = -1


def train(folder: Path, workers: int, pipe: int = -1) -> None:
    """Train, from the newest whole checkpoint if there is one, and leave a digest of the end."""
    found, _ = first_whole(checkpoints_in(folder))
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            TolerantRestore(),
            FirstStep(pipe),
            ModelCheckpoint(folder, filename="last", every_n_train_steps=3, enable_version_counter=False),
            ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, enable_version_counter=False),
        ],
    )
    torch.manual_seed(os.getpid())  # what is left to chance differs from run to run
    trainer.fit(Net(), ResumableLoader(Noisy(), BATCH, num_workers=workers), DataLoader(Noisy(), 35), ckpt_path=found)
    end = trainer._checkpoint_connector.dump_checkpoint()
    kept = [end[name] for name in ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers")]
    content = io.BytesIO()
    torch.save([*kept, torch.get_rng_state()], content)
    (folder / "digest").write_text(hashlib.sha256(content.getvalue()).hexdigest())


def start(folder: Path, workers: int) -> tuple[int, int]:
    """Fork a training, which writes to `folder/log`; gives its process and the pipe that tells of its first step."""
    readable, writable = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns of forks beside threads; there is none that matters
        child = os.fork()
    if child == 0:
        warnings.simplefilter("ignore")
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        try:
            train(folder, workers, writable)
        except BaseException:
            logging.getLogger().exception("the training failed")
            os._exit(1)
        os._exit(0)
    os.close(writable)
    return child, readable


def finish(folder: Path, workers: int = 0) -> float:
    """Train to the end; gives the seconds after the first step.

    Raises:
        RuntimeError: The training failed.
    """
    child, pipe = start(folder, workers)
    os.read(pipe, 1)
    begin = time.monotonic()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(pipe)
    if code:
        raise RuntimeError((folder / "log").read_text())
    return time.monotonic() - begin


def kill(folder: Path, workers: int, delay: float) -> bool:
    """Kill a training some seconds after its first step; False if it had ended by then."""
    child, pipe = start(folder, workers)
    os.read(pipe, 1)
    os.close(pipe)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def main(kills: int, seed: int = 0) -> dict[str, int]:
    """Kill and resume so many times, and count."""
    torch.set_num_threads(1)
    instants = random.Random(seed)
    counts = dict.fromkeys(("kills", "equal", "torn", "amid", "from start"), 0)
    with tempfile.TemporaryDirectory() as name:
        whole, folder = Path(name) / "whole", Path(name) / "killed"
        whole.mkdir()
        seconds = finish(whole)
        while counts["kills"] < kills:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            workers = 2 if counts["kills"] % 4 == 3 else 0
            if not kill(folder, workers, instants.uniform(0, seconds)):
                continue
            left = checkpoints_in(folder)
            counts["kills"] += 1
            counts["torn"] += sum(damage(path) is not None for path in left)
            counts["amid"] += any(folder.glob(".*.part"))
            counts["from start"] += not left
            finish(folder, workers)
            counts["equal"] += (folder / "digest").read_text() == (whole / "digest").read_text()
    return counts


if __name__ == "__main__":
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    begun = time.monotonic()
    print(", ".join(f"{name} {count}" for name, count in main(*map(int, sys.argv[1:] or ["100"])).items()))
    print(f"{time.monotonic() - begun:.0f} s")
