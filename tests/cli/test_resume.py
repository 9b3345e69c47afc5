"""`lit-transfer fit --resume auto`: real runs that were ended, and the same command again."""

import csv
import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lit_transfer.callbacks import FinetuningSchedule
from lit_transfer.cli._resume import _rows, find_checkpoint
from lit_transfer.restore import save_atomically

SMALL = (
    "--model.backbone=squeezenet1_1",
    "--model.weights=null",
    "--data=DigitsData",
    "--data.classes=[0,1]",
    "--data.per_class=16",
    "--data.batch_size=8",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=2",
    "--trainer.enable_progress_bar=false",
    "--resume=auto",
)


class Ended(Callback):
    """Ends the process, as a scheduler does, in the second epoch."""

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 6:
            os.kill(os.getpid(), signal.SIGTERM)


def last(folder: str) -> dict[str, torch.Tensor]:
    return torch.load(f"{folder}/checkpoints/last.ckpt", weights_only=True)["state_dict"]


def rows(folder: str) -> list[dict[str, str]]:
    with Path(f"{folder}/metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_that_was_ended_goes_on_in_its_own_folder(
    run: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    words = ("--trainer.callbacks+=FinetuningSchedule", "--trainer.callbacks.phases=full")
    code, _, err = run("fit", *SMALL, *words)
    assert code == 0, err
    assert "finds no checkpoint" in caplog.text
    Path("runs/version_0").rename("whole")
    with monkeypatch.context() as patch:
        patch.setattr(FinetuningSchedule, "on_train_batch_start", Ended().on_train_batch_start)
        code, _, err = run("fit", *SMALL, *words)
    assert code == 75
    newest = Path("runs/version_0/checkpoints/last-interrupted.ckpt")
    os.truncate(newest, newest.stat().st_size // 2)
    with pytest.warns(UserWarning, match="passes over .*last-interrupted.ckpt: it is cut off"):
        code, _, err = run("fit", *SMALL, *words)
    assert code == 0, err
    assert "goes on from runs/version_0/checkpoints/last.ckpt" in caplog.text
    assert [path.name for path in Path("runs").iterdir()] == ["version_0"]
    assert not [name for name, value in last("whole").items() if not torch.equal(value, last("runs/version_0")[name])]
    assert rows("runs/version_0") == rows("whole")
    assert "resume: null" in Path("runs/version_0/config.yaml").read_text()


def test_what_is_meant_is_asked_where_it_is_not_clear(run: Any, tmp_path: Path) -> None:
    for words in (("fit", "--ckpt_path=last"), ("test",)):
        code, _, err = run(*words, "--resume=auto", "--data=DigitsData")
        assert code == 2
        assert "--resume auto chooses what fit goes on from" in err
    code, _, err = run("fit", "--resume=atuo", "--data=DigitsData")
    assert code == 2
    assert "auto" in err


def training(path: Path, **content: Any) -> Path:
    save_atomically({"loops": {}, "optimizer_states": [], "global_step": 1, **content}, path)
    return path


def test_the_newest_run_that_has_a_checkpoint_is_taken_and_its_log_goes_on(tmp_path: Path) -> None:
    old = training(tmp_path / "version_9" / "checkpoints" / "a.ckpt")
    new = training(tmp_path / "version_10" / "checkpoints" / "b.ckpt")
    (tmp_path / "version_11" / "checkpoints").mkdir(parents=True)
    logger = CSVLogger(tmp_path, name="")
    assert find_checkpoint([logger], [], None) == new
    assert logger.version == 10
    new.write_bytes(b"")
    with pytest.warns(UserWarning, match="passes over .*b.ckpt: it is empty"):
        assert find_checkpoint([logger], [], None) == old
    logger = CSVLogger(tmp_path / "other")
    assert find_checkpoint([logger], [], None) is None
    assert logger.version == 0


def test_a_folder_that_a_checkpoint_callback_names_comes_first(tmp_path: Path) -> None:
    training(tmp_path / "version_0" / "checkpoints" / "a.ckpt")
    named = training(tmp_path / "named" / "b.ckpt")
    logger = CSVLogger(tmp_path, name="")
    assert find_checkpoint([logger], [ModelCheckpoint(tmp_path / "named")], None) == named
    assert logger.version == 1
    plain = training(tmp_path / "root" / "checkpoints" / "c.ckpt")
    assert find_checkpoint([], [ModelCheckpoint()], str(tmp_path / "root")) == plain


def test_rows_after_the_checkpoint_and_a_torn_row_are_left_out(tmp_path: Path) -> None:
    log = tmp_path / "metrics.csv"
    log.write_text("epoch,step,train_loss,val_loss\n0,3,0.5,\n0,4,,0.75\n1,9,0.25,\n1,")
    assert _rows(log, 5) == [
        {"epoch": "0", "step": "3", "train_loss": "0.5"},
        {"epoch": "0", "step": "4", "val_loss": "0.75"},
    ]
    assert len(_rows(log, 4)) == 1
