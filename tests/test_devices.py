"""Which GPUs are chosen: real CUDA where there is any, and a stand-in for its answers elsewhere."""

import sys
from pathlib import Path

import pytest
import torch

from lit_transfer import devices, emptiest_gpus

FAKE_TORCH = """
class cuda:
    FREE = {free}
    @classmethod
    def device_count(cls):
        return len(cls.FREE)
    @classmethod
    def mem_get_info(cls, index):
        if cls.FREE[index] is None:
            raise RuntimeError("all CUDA-capable devices are busy or unavailable")
        return cls.FREE[index], 80
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A machine whose GPUs have that much free memory, as the process that asks sees it."""

    def build(free: list[int | None]) -> None:
        (tmp_path / "torch.py").write_text(FAKE_TORCH.format(free=free))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))

    return build


def test_the_emptiest_come_first(machine) -> None:
    machine([10, 40, 30, 40])
    assert emptiest_gpus(3) == [1, 3, 2]
    assert emptiest_gpus() == [1]


def test_a_gpu_that_cannot_be_opened_is_left_out(machine) -> None:
    machine([None, 5, 7])
    assert emptiest_gpus(2) == [2, 1]
    with pytest.raises(ValueError, match=r"3 GPUs were asked for, and 2 can be used here: 1 \(.*\), 2 \("):
        emptiest_gpus(3)


def test_without_a_gpu_the_answer_is_empty_and_a_trainer_takes_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch import Trainer

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(sys, "executable", "/nowhere")  # nothing is asked
    assert emptiest_gpus(2) == []
    trainer = Trainer(accelerator="cpu", devices=emptiest_gpus(2) or "auto", logger=False, enable_checkpointing=False)
    assert trainer.num_devices == 1


@pytest.mark.parametrize("n", [0, -1, True, 1.0, "1"])
def test_a_number_that_is_none_is_refused(n) -> None:
    with pytest.raises(ValueError, match="number of GPUs"):
        emptiest_gpus(n)


def test_a_process_that_fails_says_why(machine, tmp_path: Path) -> None:
    machine([1])
    (tmp_path / "torch.py").write_text("raise OSError('libcuda.so is broken')")
    with pytest.raises(RuntimeError, match=r"could not be read: OSError: libcuda\.so is broken"):
        devices.free_gpu_memory()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_real_gpus_are_found_and_filling_one_changes_the_order() -> None:
    count = torch.cuda.device_count()
    assert sorted(emptiest_gpus(count)) == list(range(count))
    before = devices.free_gpu_memory()[0]
    held = torch.empty(2**30, dtype=torch.uint8, device="cuda:0")
    assert before - devices.free_gpu_memory()[0] >= held.numel()
