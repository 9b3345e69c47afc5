"""Labels and numbers in two gloo processes, beside one: batches of 8 in all, float32, one thread, CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tasks_ddp import CASES, IMAGES, TASKS, fit

SCRIPT = Path(__file__).with_name("tasks_ddp.py")
pytestmark = pytest.mark.xdist_group("ddp")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ddp")
    command, environment = [sys.executable, str(SCRIPT), str(folder)], {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [{**json.loads((folder / f"rank{rank}.json").read_text()), "folder": folder} for rank in (0, 1)]


@pytest.mark.parametrize("case", CASES)
def test_both_processes_find_what_one_finds(case: str, ranks: list[dict[str, Any]], tmp_path: Path) -> None:
    alone = fit(case, 1, str(tmp_path))
    first, second = (rank[case] for rank in ranks)
    assert first["metrics"].keys() == alone["metrics"].keys()
    # The loss of a training step is that of each process's own images.
    for name in alone["metrics"].keys() - {"train_loss"}:
        assert first["metrics"][name] == second["metrics"][name] == pytest.approx(alone["metrics"][name], abs=1e-4)
    assert len(alone["buffers"]) == (1 if case.startswith("labels") else 2)  # thresholds; mean and deviation
    assert first["buffers"] == second["buffers"]
    for name, values in alone["buffers"].items():
        assert first["buffers"][name] == pytest.approx(values, rel=1e-5, abs=1e-5)
    assert first["values"] == second["values"]
    assert first["values"] == pytest.approx(alone["values"], abs=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_each_image_is_measured_and_answered_once(case: str, ranks: list[dict[str, Any]], tmp_path: Path) -> None:
    alone = fit(case, 1, str(tmp_path))
    first, second = (rank[case] for rank in ranks)
    assert first["seen"] == second["seen"] == {"val": IMAGES, "test": IMAGES}
    assert len(first["answers"]) == len(second["answers"]) == IMAGES // 2
    for number, answer in enumerate(alone["answers"]):
        assert (first, second)[number % 2]["answers"][number // 2] == pytest.approx(answer, rel=1e-5, abs=1e-4)
    assert first["figures"] == second["figures"] == alone["figures"]


@pytest.mark.parametrize(("task", "picture"), [("labels", "thresholds"), ("numbers", "scatter")])
def test_the_command_line_draws_and_tells_once(task: str, picture: str, ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["said"][task] for rank in ranks)
    assert first.startswith("exit code 0\n")
    assert second == "exit code 0\n"
    assert first.count(f"{picture}.png") == 1
    (run,) = (ranks[0]["folder"] / task).iterdir()
    assert (run / f"{picture}.png").stat().st_size > 1000
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert TASKS[task].__name__ in (run / "config.yaml").read_text()
