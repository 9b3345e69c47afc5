"""The example of docs/export.md, run as it stands there."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lit_transfer.export import export
from lit_transfer.modules import ImageClassifier
from lit_transfer.predictor import Predictor

PAGE = Path(__file__).parents[2] / "docs" / "export.md"


def example() -> str:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    found = [block for block in blocks if "onnxruntime" in block]
    assert len(found) == 1
    return str(found[0])


def smooth(path: Path) -> None:
    """A photo on which a resampling has little to round: broad waves of colour, taller than wide, on its side."""
    y, x = np.mgrid[:90, :140] / 30
    pixels = np.stack([np.sin(x + y), np.cos(x), np.sin(2 * y)], axis=-1)
    exif = Image.Exif()
    exif[274] = 6  # turned by the camera
    Image.fromarray((127.5 + 127 * pixels).astype(np.uint8)).save(path, exif=exif, quality=95)


def test_the_example_needs_no_more_than_it_says_and_answers_as_the_module(
    make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert set(re.findall(r"^(?:import|from) (\w+)", example(), re.M)) == {"json", "numpy", "onnxruntime", "PIL"}
    module: ImageClassifier = make("class")
    monkeypatch.chdir(tmp_path)
    smooth(Path("photo.jpg"))
    export(module, "best.onnx")
    exec(compile(example(), str(PAGE), "exec"), {})
    name, probability = capsys.readouterr().out.split()
    expected = Predictor(module)("photo.jpg")
    assert name == expected.label
    assert abs(float(probability) - expected.probability) < 0.02
