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


MakeTable = Callable[..., Path]


@pytest.fixture
def make_table(tmp_path: Path) -> MakeTable:
    """Give a function that writes a CSV file: `make_table("path,label", "0.png,ant")`, with each row's image beside it.

    Rows whose path begins with `no/` get no image; images are small, grey, and differ from row to row.
    """

    def make(heading: str, *rows: str, name: str = "labels.csv", images: bool = True) -> Path:
        file = tmp_path / name
        file.write_text("\n".join([heading, *rows, ""]), encoding="utf-8")
        for number, row in enumerate(rows if images else ()):
            path = tmp_path / row.split(",")[0]
            if row.strip() and not row.startswith(("no/", ",", "..", "/")):
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (12, 10), (number % 256,) * 3).save(path)
        return file

    return make
