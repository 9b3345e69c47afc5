"""Signals sent to a real fit, which then goes on and ends bitwise like the uninterrupted one. CPU, one thread."""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_runs import differences, fit
from foreign_module import Foreign
from kills import in_child
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.plugins.environments import SLURMEnvironment

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


class Send(Callback):
    """Sends this process a signal in a hook, at a batch of an epoch."""

    def __init__(self, hook: str, epoch: int, batch: int, number: int = signal.SIGTERM) -> None:
        self.place, self.number = (epoch, batch), number
        setattr(self, hook, self.send)

    def send(self, trainer: Trainer, module: LightningModule, *rest: Any) -> None:
        if not trainer.sanity_checking and (trainer.current_epoch, trainer.fit_loop.batch_idx) == self.place:
            os.kill(os.getpid(), self.number)


def interrupted(where: Path, *callbacks: Callback, **options: Any) -> SystemExit:
    before = [signal.getsignal(number) for number in SIGNALS]
    saving = ModelCheckpoint(where, filename="{step}", every_n_epochs=1)
    with pytest.raises(SystemExit) as stopped:
        fit(*callbacks, saving, enable_checkpointing=True, **options)
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert not any(
        isinstance(thread, threading.Timer) and not thread.finished.is_set() for thread in threading.enumerate()
    )
    return stopped.value


@pytest.mark.parametrize(
    ("hook", "place", "number", "options"),
    [
        ("on_train_batch_start", (0, 1), signal.SIGTERM, {}),
        ("on_train_batch_end", (1, 3), signal.SIGUSR1, {}),
        ("on_validation_batch_start", (0, 3), signal.SIGTERM, {"limit_val_batches": 2}),
        ("on_before_optimizer_step", (1, 3), signal.SIGTERM, {"limit_val_batches": 0}),
        ("on_train_batch_start", (1, 0), signal.SIGUSR1, {"accumulate_grad_batches": 2, "val_check_interval": 2}),
        ("on_validation_batch_start", (0, 3), signal.SIGTERM, {"beside": lambda: EMAWeightAveraging(decay=0.5)}),
    ],
    ids=["mid-epoch", "last batch", "amid validation", "no validation", "open window", "averaged weights in place"],
)
def test_the_run_is_saved_and_ends_like_the_uninterrupted_one(
    hook: str, place: Any, number: int, options: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = fit(**options)
    stopped = interrupted(tmp_path, Send(hook, *place, number), **options)
    assert stopped.code == 75
    path = tmp_path / "last-interrupted.ckpt"
    assert f"saved in {path}" in caplog.text
    assert signal.Signals(number).name in caplog.text
    seen = torch.load(path, weights_only=True)["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"]
    batches = 2 if "accumulate_grad_batches" in options or "beside" in options else 1
    assert seen == place[0] * 4 + place[1] + batches
    resumed = fit(ckpt_path=path, seed=7, **options)
    found = [place for place in differences(whole, resumed) if "val_loop.batch_progress" not in place]
    assert not found


def test_last_finds_it(tmp_path: Path) -> None:
    interrupted(tmp_path, Send("on_train_batch_start", 1, 2))
    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_epochs=1)
    with pytest.warns(UserWarning, match="exists and is not empty"):
        resumed = fit(saving, ckpt_path="last", seed=5, enable_checkpointing=True)  # type: ignore[arg-type]  # options of any kind
    assert not list(differences(fit()["state_dict"], resumed["state_dict"]))


def test_the_users_own_handlers_are_left_in_place(tmp_path: Path) -> None:
    called: list[int] = []
    before = {number: signal.signal(number, lambda n, _: called.append(n)) for number in SIGNALS[:2]}
    try:
        interrupted(tmp_path, Send("on_train_batch_start", 0, 1, signal.SIGUSR1), Send("on_train_batch_start", 1, 1))
        assert called == [signal.SIGUSR1, signal.SIGTERM]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_fit_that_nobody_interrupts_gives_the_handlers_back_too() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    fit(max_epochs=1)
    assert [signal.getsignal(number) for number in SIGNALS] == before


class Stuck(Foreign):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)


def test_where_no_safe_point_comes_within_the_grace_time_the_process_ends_all_the_same(tmp_path: Path) -> None:
    def stuck() -> None:
        with (tmp_path / "err").open("w") as sys.stderr:
            fit(grace=0.2, module=Stuck)

    assert in_child(stuck) == 75
    assert "No batch ended within 0.2 s" in (tmp_path / "err").read_text()


def test_a_slurm_job_is_requeued_at_the_safe_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f"#!/bin/sh\necho $@ >> {tmp_path}/asked\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for name, value in {"JOB_ID": "7", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    options: dict[str, Any] = {"plugins": [SLURMEnvironment()], "folder": tmp_path}
    stopped = interrupted(tmp_path / "kept", Send("on_before_backward", 1, 1, signal.SIGUSR1), **options)
    assert stopped.code == 75
    assert (tmp_path / "asked").read_text() == "requeue 7\n"
    whole = fit(plugins=[SLURMEnvironment()])
    resumed = fit(ckpt_path=tmp_path / "hpc_ckpt_1.ckpt", seed=3, **options)
    assert not [place for place in differences(whole, resumed) if "val_loop.batch_progress" not in place]
