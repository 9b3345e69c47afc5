"""What the C library keeps is seen in the memory that a process of its own holds."""

import subprocess
import sys

import pytest

from lit_transfer.features import HeapTrimming
from lit_transfer.features._heap import _malloc_trim

FREED = """
from pathlib import Path
from lit_transfer.features import HeapTrimming

def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20

blocks = [bytes(60_000) for _ in range(2_000)]  # 114 MiB, each too small to be a mapping of its own
del blocks[:-1]  # the last one lies above the hole
before = held()
HeapTrimming()()
print(before - held())
"""


@pytest.mark.skipif(_malloc_trim() is None, reason="needs glibc")
def test_freed_memory_below_what_is_in_use_is_given_back() -> None:
    said = subprocess.run([sys.executable, "-c", FREED], check=True, capture_output=True, text=True)
    assert int(said.stdout) > 80


def test_that_is_done_once_in_a_while_and_not_at_all_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr("lit_transfer.features._heap._malloc_trim", lambda: calls.append)
    trim = HeapTrimming(seconds=1000)
    for _ in range(3):
        trim()
    assert calls == [0]
    monkeypatch.setattr("lit_transfer.features._heap._malloc_trim", lambda: None)
    HeapTrimming()()
