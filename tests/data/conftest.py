"""Small folders of real image files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MakeFolder = Callable[..., Path]


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Give a function that writes images: `make_folder({"train/ants": 3})` makes 3 PNG files in root/train/ants."""

    def make(counts: dict[str, int], root: str = "photos", size: tuple[int, int] = (12, 10)) -> Path:
        generator = np.random.default_rng(0)
        for folder, count in counts.items():
            (tmp_path / root / folder).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / root / folder / f"{number}.png")
        (tmp_path / root).mkdir(exist_ok=True)
        return tmp_path / root

    return make
