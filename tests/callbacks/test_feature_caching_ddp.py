"""Two gloo processes share the work and read all features. Batches of 8 on each, float32, one thread, CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cached_module import TRAIN, VAL

SCRIPT = Path(__file__).with_name("cached_ddp_fit.py")
CASES = ["probe hooks", "moves loaders"]
pytestmark = pytest.mark.xdist_group("ddp")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ddp")
    command, environment = [sys.executable, str(SCRIPT), str(folder)], {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("case", CASES)
def test_both_end_where_they_end_without(case: str, ranks: list[dict[str, Any]]) -> None:
    assert [rank[case]["apart"] for rank in ranks] == [0, 0]
    assert all(rank[case]["val"] for rank in ranks)
    assert ranks[0][case]["values"] == ranks[1][case]["values"]


def test_each_computes_its_share_and_all_read_all(ranks: list[dict[str, Any]]) -> None:
    computed = [rank["probe hooks"]["computed"] - 2 * 2 * 4 for rank in ranks]
    assert sum(computed) == TRAIN + 3 + VAL
    assert min(computed) >= 0.3 * sum(computed)
    reads = sum(rank["probe hooks"]["reads"] for rank in ranks)
    looked, filled, twice = 2 * 2 * 4, TRAIN + 3 + VAL, TRAIN + VAL
    assert reads == looked + filled + twice
