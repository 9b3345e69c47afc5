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

from lit_transfer.callbacks import FinetuningSchedule

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
