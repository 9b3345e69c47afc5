"""One part of a large checkpoint in shards, by one real process and by two over gloo; small, as the benchmark does it.

CPU, float32, one thread each: the values themselves are compared in the processes.
"""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "sharded_reading.py"


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the system does not count the bytes that are read")
def test_of_one_part_each_byte_is_read_once_by_however_many_processes() -> None:
    command = [sys.executable, str(SCRIPT), "--side", "1000", "--times", "40"]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in ran.stdout.splitlines() if "|" in line][2:]
    assert [row[0] for row in table] == ["1", "2"]
    for processes, _, over, most, _ in table:
        assert float(over) <= 1.05
        assert int(most.replace(",", "")) <= 1.05 * 16_000_000 / int(processes)
