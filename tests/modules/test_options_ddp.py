"""EMA, LoRA, mixing and balanced sampling in two gloo processes: batches of 8 in all, float32, one thread, CPU."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from options_ddp import COUNTS, EPOCHS, IMAGES, SAME, fit, write_photos

SCRIPT = Path(__file__).with_name("options_ddp.py")
pytestmark = pytest.mark.xdist_group("ddp")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("options")
    write_photos(folder / "photos")
    command, environment = [sys.executable, str(SCRIPT), str(folder)], {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("case", [*SAME, "mixed", "balanced"])
def test_both_processes_end_with_the_same_weights(case: str, ranks: list[dict[str, Any]]) -> None:
    assert ranks[0][case]["values"] == ranks[1][case]["values"]


@pytest.mark.parametrize("case", SAME)
def test_two_processes_find_what_one_finds(case: str, ranks: list[dict[str, Any]]) -> None:
    alone, first = fit(case, 1), ranks[0][case]
    assert first["values"] == pytest.approx(alone["values"], rel=1e-5, abs=1e-5)
    assert first["metrics"] == ranks[1][case]["metrics"] == pytest.approx(alone["metrics"], abs=1e-5)


def test_each_process_mixes_its_own_images(ranks: list[dict[str, Any]]) -> None:
    own = [[row for epoch in rank["mixed"]["targets"] for row in epoch] for rank in ranks]
    assert own[0] != own[1]
    for rows in own:
        assert len(rows) == EPOCHS * IMAGES // 2
        assert all(sum(row) == pytest.approx(1, abs=1e-6) for row in rows)
        assert any(max(row) < 0.95 for row in rows)


def test_the_processes_together_see_equally_many_of_each_class(ranks: list[dict[str, Any]]) -> None:
    each = sum(COUNTS.values()) // 2
    for first, second in zip(*(rank["balanced"]["targets"] for rank in ranks), strict=True):
        assert Counter(first + second) == {0: each, 1: each}
        assert len(first) == len(second)
