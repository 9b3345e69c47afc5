"""`--gpus N`: what the Trainer is given for it."""

import pytest

from lit_transfer.cli import _gpus
from lit_transfer.cli._gpus import trainer_devices


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_TRANSFER_GPUS", "")  # so that what the code sets is taken back
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(_gpus, "emptiest_gpus", lambda n: [2, 0, 1][:n])


def test_the_emptiest_become_the_devices_and_other_ranks_take_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    assert trainer_devices(2, {}) == {"accelerator": "gpu", "devices": [2, 0]}
    monkeypatch.setattr(_gpus, "emptiest_gpus", lambda n: pytest.fail("asked again"))
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert trainer_devices(2, {}) == {"accelerator": "gpu", "devices": [2, 0]}


def test_without_the_flag_nothing_changes() -> None:
    assert trainer_devices(None, {"devices": 3}) == {}


def test_without_a_gpu_it_is_told_and_the_cpu_trains(monkeypatch, capsys) -> None:
    monkeypatch.setattr(_gpus, "emptiest_gpus", lambda n: [])
    assert trainer_devices(1, {"devices": "auto", "accelerator": "auto"}) == {}
    assert capsys.readouterr().err == "--gpus 1: no GPU is visible here; going on without one.\n"


@pytest.mark.parametrize(("name", "value"), [("devices", 2), ("accelerator", "cpu")])
def test_devices_chosen_twice_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"--gpus 1 and --trainer.{name}={value} both choose devices"):
        trainer_devices(1, {name: value})


def test_under_a_launcher_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ValueError, match="a launcher has given each process its GPU already"):
        trainer_devices(1, {})


def test_on_the_command_line(run, photos, monkeypatch) -> None:
    monkeypatch.setattr(_gpus, "emptiest_gpus", lambda n: [])
    words = ["fit", f"--data.root={photos}", "--model.backbone=squeezenet1_1", "--model.weights=null"]
    code, _, err = run(*words, "--gpus=1", "--trainer.fast_dev_run=true", "--data.num_workers=0")
    assert code == 0, err
    assert "no GPU is visible here" in err
    code, _, err = run(*words, "--gpus=1", "--trainer.devices=1")
    assert code == 2
    assert "both choose devices: give one" in err
    code, _, err = run(*words, "--gpus=0")
    assert code == 2
