"""Real fits whose checkpoints go through CheckedIO."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_module import Batches, Foreign, trainer, val_loader
from lightning.fabric.plugins import CheckpointIO, TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO

from lit_transfer.callbacks._checkpoint_io import CheckedIO, Read, install, uninstall
from lit_transfer.restore import damage
from lit_transfer.weights import WeightsError

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory")


class Checked(Callback):
    """What a callback does that brings CheckedIO along."""

    def __init__(self, read: Read | None = None) -> None:
        self.read = read

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        install(trainer.strategy, self.read)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        uninstall(trainer.strategy)


def fit(folder: Path, epochs: int = 3, *callbacks: Callback, ckpt_path: Any = None, **options: Any) -> Trainer:
    saving = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, save_last=True)
    options = {"enable_checkpointing": True, "max_epochs": epochs, **options}
    made = trainer(*(callbacks or (Checked(),)), saving, **options)
    made.fit(Foreign(dropout=0.0), Batches(), val_loader(), ckpt_path=ckpt_path)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fit(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "epoch=0.ckpt",
        "epoch=1.ckpt",
        "epoch=2.ckpt",
        "last.ckpt",
    ]
    return tmp_path


def spoil(path: Path) -> None:
    """As a power failure leaves a file that was not flushed: its length is right, a page in its middle is not."""
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(times.st_size // 2)
        file.write(bytes(100))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_checkpoints_are_ordinary_and_verified(folder: Path) -> None:
    for path in folder.iterdir():
        assert damage(path) is None
        assert torch.load(path, weights_only=True)["pytorch-lightning_version"]
    assert fit(folder, 4, ckpt_path=folder / "last.ckpt").current_epoch == 4


def test_last_passes_over_damaged_files_says_so_and_takes_the_one_before(folder: Path) -> None:
    spoil(folder / "last.ckpt")
    (folder / "epoch=2.ckpt").write_bytes((folder / "epoch=2.ckpt").read_bytes()[:5000])
    with pytest.warns(
        UserWarning, match=r"Going on from .*epoch=1.ckpt.*last.ckpt: its checksum .*; .*epoch=2.ckpt: it is cut"
    ):
        resumed = fit(folder, 4, ckpt_path="last")
    whole = fit(folder / "whole", 4)
    for name, value in whole.lightning_module.state_dict().items():
        assert torch.equal(resumed.lightning_module.state_dict()[name], value), name


def test_a_damaged_file_that_was_asked_for_by_name_is_refused(folder: Path) -> None:
    spoil(folder / "epoch=1.ckpt")
    with pytest.raises(
        WeightsError, match=r"epoch=1.ckpt is damaged: its checksum .*last.ckpt is whole: give it as ckpt_path"
    ):
        fit(folder, 4, ckpt_path=folder / "epoch=1.ckpt")
    for path in folder.iterdir():
        spoil(path)
    with pytest.raises(WeightsError, match=r"last.ckpt is damaged: .* no other one in its folder is whole"):
        fit(folder, 4, ckpt_path="last")


def test_a_full_disk_ends_the_run_with_one_error_and_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, written = os.write, 0

    def write(descriptor: int, data: Any) -> int:
        nonlocal written
        written += len(data)
        if written > 150_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(OSError, match=r"could not be written: the disk is full"):
            fit(tmp_path, 30)
    assert all(damage(path) is None for path in tmp_path.iterdir())
    left = torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"]
    assert fit(tmp_path, left + 3, ckpt_path=tmp_path / "last.ckpt").current_epoch == left + 3


def test_a_reader_of_ones_own_is_given_whole_files(folder: Path) -> None:
    asked: list[Any] = []

    def read(inner: CheckpointIO, path: str, weights_only: bool | None) -> dict[str, Any]:
        asked.append((type(inner), path, weights_only))
        return inner.load_checkpoint(path)

    fit(folder, 4, Checked(read), ckpt_path=str(folder / "last.ckpt"))
    assert asked == [(TorchCheckpointIO, str(folder / "last.ckpt"), None)]


class Own(TorchCheckpointIO):
    saved = 0

    def save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        self.saved += 1
        super().save_checkpoint(*arguments, **options)


def test_a_thread_writes_through_it_and_another_io_writes_by_itself(tmp_path: Path) -> None:
    class Seen(Checked):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            io = trainer.strategy.checkpoint_io
            assert isinstance(io, AsyncCheckpointIO)
            assert isinstance(io.checkpoint_io, CheckedIO)

    made = fit(tmp_path / "async", 2, Seen(), plugins=[AsyncCheckpointIO()])
    assert b"lit_transfer sha256 " in (tmp_path / "async" / "last.ckpt").read_bytes()[-84:]
    assert isinstance(made.strategy.checkpoint_io, AsyncCheckpointIO)
    assert type(made.strategy.checkpoint_io.checkpoint_io) is TorchCheckpointIO
    own = Own()
    fit(tmp_path / "own", 2, plugins=[own])
    assert own.saved == 4
