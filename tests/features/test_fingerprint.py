import os
import runpy
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from torchvision.transforms import v2

from lit_transfer.data import DigitsData, ImageFolderData
from lit_transfer.features import UnknownContentError, fingerprint


class Photos:
    """A dataset as users write them: a folder, names in it, a transform."""

    def __init__(self, root: Path, size: int = 8, transform: Any = None) -> None:
        self.root, self.names = str(root), sorted(path.name for path in root.iterdir())
        self.size, self.transform = size, transform or v2.Resize(size)

    def __getitem__(self, index: int) -> str:
        return f"{self.root}/{self.names[index]}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "photos" / name).write_bytes(b"12345678")
    return tmp_path / "photos"


def touch(folder: Path) -> None:
    stamp = (folder / "b.jpg").stat().st_mtime_ns + 1
    os.utime(folder / "b.jpg", ns=(stamp, stamp))


CHANGES: dict[str, Callable[[Path], Any]] = {
    "a file's time": touch,
    "a file's size": lambda folder: (folder / "b.jpg").write_bytes(b"1"),
    "a file's name": lambda folder: (folder / "b.jpg").rename(folder / "c.jpg"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_file_in_a_folder_that_a_dataset_names_changes_it(change: str, folder: Path) -> None:
    before = fingerprint(data=Photos(folder))
    assert fingerprint(data=Photos(folder)) == before
    CHANGES[change](folder)
    assert fingerprint(data=Photos(folder)) != before


def test_another_option_transform_or_attribute_changes_it(folder: Path) -> None:
    variants = [
        Photos(folder),
        Photos(folder, 9),
        Photos(folder, transform=v2.Resize(8, antialias=False)),
        Photos(folder, transform=v2.Resize(8, interpolation=v2.InterpolationMode.NEAREST)),
        Photos(folder, transform=v2.Compose([v2.Resize(8), v2.Normalize([0.5], [0.5])])),
        Photos(folder, transform=v2.Compose([v2.Resize(8), v2.Normalize([0.5], [0.25])])),
        Photos(folder, transform=lambda image: image + 1),
        Photos(folder, transform=lambda image: image + 2),
    ]
    assert len({fingerprint(data=variant) for variant in variants}) == len(variants)


def test_values_that_a_function_takes_from_around_it_count() -> None:
    def shifted(by: Any) -> Callable[[int], Any]:
        return lambda value: value + by

    assert fingerprint(f=shifted(1)) == fingerprint(f=shifted(1))
    assert fingerprint(f=shifted(1)) != fingerprint(f=shifted(2))
    assert fingerprint(f=shifted(np.zeros(2))) != fingerprint(f=shifted(np.ones(2)))


def test_weights_and_data_in_memory_count_value_for_value() -> None:
    net = nn.Conv2d(3, 4, 3)
    before = fingerprint(weights=net.state_dict())
    with torch.no_grad():
        net.weight[3, 2, 1, 0] += 1e-3
    assert fingerprint(weights=net.state_dict()) != before
    images = torch.zeros(4, 2)
    assert fingerprint(d=TensorDataset(images)) == fingerprint(d=TensorDataset(images.clone()))
    assert fingerprint(d=TensorDataset(images)) != fingerprint(d=TensorDataset(images.double()))
    assert fingerprint(d=TensorDataset(images)) != fingerprint(d=TensorDataset(images + 1))


def test_sets_equal_strings_and_cycles_are_read_the_same_each_time() -> None:
    words = {"one", "two", "three"}
    same = [["one", "one"], ["one", "".join(["o", "ne"])]]
    assert fingerprint(words=words) == fingerprint(words={"three", "two", "one"})
    assert fingerprint(words=same[0]) == fingerprint(words=same[1])
    loop: list[Any] = [1]
    loop.append(loop)
    assert fingerprint(loop=loop) == fingerprint(loop=loop)
    assert fingerprint(a=1, b=2) != fingerprint(a=2, b=1)


def own_class(path: Path, answer: str) -> Any:
    """What a user's script defines, without importing it twice under one name."""
    code = f"""
        STEP = {{"a", "b", "c", "d"}}
        class Own:
            def __getitem__(self, index):
                return {answer}
    """
    path.write_text(textwrap.dedent(code))
    return runpy.run_path(str(path))["Own"]()


def test_a_changed_method_or_global_of_the_users_own_class_counts(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    seen = {answer: fingerprint(data=own_class(path, answer)) for answer in ("index", "index + 1", "index, STEP")}
    assert len(set(seen.values())) == 3
    code = (
        "import runpy; from lit_transfer.features import fingerprint; "
        f"print(fingerprint(data=runpy.run_path({str(path)!r})['Own']()))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}  # another order of the set
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == seen["index, STEP"]


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file, pytest.raises(UnknownContentError, match="BufferedWriter cannot be"):
        fingerprint(data={"file": file})


def test_our_own_folder_of_photos_is_told_by_its_files_and_options(photos: Path) -> None:
    def of(**options: Any) -> str:
        data = ImageFolderData(photos, image_size=16, **options)
        data.setup()
        return fingerprint(train=data.train_dataset)

    assert of(augment="none") == of(augment="none")
    assert of(augment="none") != of(augment="default")
    assert of(augment="none") != of(augment="none", seed=1)


def test_words_in_our_own_code_are_no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`runs/` lies where most people train, and grows with each run."""
    monkeypatch.chdir(tmp_path)
    words = ["runs", "train", "val", "images", "data", "label"]
    for word in words:
        (tmp_path / word).mkdir()
    before = fingerprint(ours=(ImageFolderData, DigitsData))
    for word in words:
        (tmp_path / word / "new.txt").write_text("new")
    assert fingerprint(ours=(ImageFolderData, DigitsData)) == before
