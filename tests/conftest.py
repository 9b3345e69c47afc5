"""Fixtures that more than one test file uses."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of real photos, weights and checkpoints by strangers; the test is skipped where it is absent."""
    beside = Path(__file__).parents[2] / "shared" / "real"
    path = Path(os.environ.get("LIT_TRANSFER_REAL", beside))
    if not path.is_dir():
        pytest.skip("needs real files: set LIT_TRANSFER_REAL to their folder")
    return path
