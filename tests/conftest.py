"""Fixtures that more than one test file uses."""

import os
from pathlib import Path

# Before torch is imported, here and in the processes that tests start: several tests run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of real photos, weights and checkpoints by strangers; the test is skipped where it is absent."""
    beside = Path(__file__).parents[2] / "shared" / "real"
    path = Path(os.environ.get("LIT_TRANSFER_REAL", beside))
    if not path.is_dir():
        pytest.skip("needs real files: set LIT_TRANSFER_REAL to their folder")
    return path


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small photos of two kinds, `train/` and `val/`: noise over red and over blue."""
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for name, channel in (("blue", 2), ("red", 0)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 100, (40, 48, 3), dtype=np.uint8)
                pixels[..., channel] += 150
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root
