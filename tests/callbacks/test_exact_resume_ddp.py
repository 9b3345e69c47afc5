"""Two gloo processes end bitwise like uninterrupted ones, wherever they were interrupted. Float32, CPU, one thread."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from exact_ddp import WHERE
from exact_runs import OPTIMIZERS, PHASES, Noisy, SaveEverywhere, Seen, fit
from foreign_module import Foreign

from lit_transfer.callbacks import FinetuningSchedule
from lit_transfer.data import ResumableLoader

SCRIPT = Path(__file__).with_name("exact_ddp.py")
pytestmark = pytest.mark.xdist_group("ddp")


def alone(*callbacks: Any, **options: Any) -> dict[str, Any]:
    return fit(
        *callbacks,
        module=lambda: Foreign(OPTIMIZERS["SGD"]),
        beside=lambda: FinetuningSchedule(PHASES),
        loader=lambda: ResumableLoader(Noisy(), 8),
        max_epochs=2,
        **options,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exact")


@pytest.fixture(scope="module")
def first(folder: Path) -> list[int]:
    """The samples that one process trained on in epoch 1 before its checkpoint."""
    seen = Seen()
    alone(seen, SaveEverywhere(folder / "alone"))
    (folder / "alone" / "epoch 1 batch 0.ckpt").rename(folder / "one.ckpt")
    return seen.samples[1][:8]


@pytest.fixture(scope="module")
def answers(folder: Path, first: list[int]) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    assert lines, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(lines[-1].removeprefix("ANSWER "))
    return found


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_number_of_both_is_the_same(kind: str, where: str, answers: dict[str, Any]) -> None:
    assert answers[f"{kind}, {where}"] == []


def test_a_signal_to_one_of_them_ends_both_at_the_same_batch(answers: dict[str, Any]) -> None:
    assert answers["signalled"] == {"codes": [75, 0], "step": 5}
    assert answers["after the signal"] == []


def test_two_processes_go_on_with_the_samples_that_one_had_left(answers: dict[str, Any], first: list[int]) -> None:
    one, two = answers["from one process"]
    assert len(one) == len(two) == 8  # nine each are left, and no batch holds a single sample
    assert len({*one, *two, *first}) == 24


def test_one_process_goes_on_with_the_samples_that_two_had_left(answers: dict[str, Any], folder: Path) -> None:
    seen, whole = Seen(), Seen()
    end = alone(seen, ckpt_path=folder / "SGD" / "epoch 1 batch 0.ckpt")
    alone(whole)
    assert seen.samples[1] == whole.samples[1][8:]
    batches = end["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
    assert batches["completed"] == 4
    assert end["epoch"] == 2
