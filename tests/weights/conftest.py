"""Fixtures of the tests on weights. Puts this folder on the path: tests share small networks and files."""

import resource
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

SECONDS = 60  # for each hostile file or group of them; the slowest takes four on an idle machine
EXTRA_BYTES = 2**30  # what opening a file may cost, whatever it holds


@pytest.fixture
def legacy_tar() -> Callable[..., None]:
    """Writes the oldest format of torch, which no torch of today can write: `legacy_tar(state, path)`."""
    from legacy_tar import write_legacy_tar

    return write_legacy_tar


@pytest.fixture
def limits() -> Iterator[None]:
    """A limit on the time and on the memory of a test of hostile files."""

    def too_late(*_: Any) -> None:
        pytest.fail(f"took longer than {SECONDS} s")  # no Exception, which the unpickler would turn into its own

    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(SECONDS)
    if Path("/proc/self/statm").exists():
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + EXTRA_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
