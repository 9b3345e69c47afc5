import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_transfer.features import Filling, Layout, prepare


def store(folder: Path, key: str, batches: int = 2, split: str = "train") -> None:
    about = {"module": "ImageClassifier", "boundary": "backbone.layer3", "split": split}
    prepare(folder, key, Layout(4, (3, 2), "float16", 2), about)
    filling = Filling(folder, key)
    for number in range(batches):
        filling.write(number, [2 * number, 2 * number + 1], torch.zeros(2, 3, 2), ["[]", "[]"])
    filling.close()
    if batches == 2:
        filling.finish()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIT_TRANSFER_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "features"
    store(folder, "aa11")
    store(folder, "ab22", split="val")
    store(folder, "cc33", batches=1)
    return folder


def test_lists_what_is_stored_and_what_was_interrupted(run: Any, folder: Path) -> None:
    code, out, _ = run("cache", "list")
    lines = out.splitlines()
    assert code == 0
    assert [line.split()[0] for line in lines[:3]] == ["aa11", "cc33", "ab22"]
    assert lines[0].endswith("ImageClassifier at backbone.layer3, train: 4 x 3x2 float16")
    assert lines[1].endswith("float16, 50% done")
    assert lines[3].startswith("3 entries, ")
    assert lines[3].endswith(str(folder))


def test_json_for_programs(run: Any, folder: Path) -> None:
    _, out, _ = run("cache", "list", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["key"] for row in rows] == ["aa11", "cc33", "ab22"]
    assert [row["done"] for row in rows] == [1, 0.5, 1]
    assert rows[0]["size"] > 0
    assert rows[0]["shape"] == [3, 2]


def test_clears_by_the_beginning_of_a_key_by_age_or_all(run: Any, folder: Path) -> None:
    assert run("cache", "clear", "aa")[1].startswith("removed 1 entries")
    assert sorted(path.name for path in folder.iterdir()) == ["ab22", "cc33.part"]
    os.utime(folder / "ab22" / "about.json", (0, 0))
    run("cache", "clear", "--unused-days", "30")
    assert [path.name for path in folder.iterdir()] == ["cc33.part"]
    run("cache", "clear", "--folder", folder)
    assert list(folder.iterdir()) == []


def test_a_key_that_is_none_or_several_is_one_line_and_nothing_is_removed(run: Any, folder: Path) -> None:
    for key, said in (("a", "of 2 entries; expected one. aa11, ab22"), ("aa12", "of 0 entries.*Nearest: aa11")):
        code, _, err = run("cache", "clear", key, "cc33")
        assert code == 2
        assert err.count("\n") == 1
        assert re.search(said, err)
    assert len(list(folder.iterdir())) == 3


def test_an_empty_or_missing_folder_is_no_error(run: Any, tmp_path: Path) -> None:
    code, out, _ = run("cache", "list", "--folder", tmp_path / "none")
    assert code == 0
    assert out.startswith("0 entries")


def test_decoded_images_are_listed_and_cleared_with_the_rest(run: Any, folder: Path) -> None:
    images = [folder.parent / "images" / "ab" / f"{number}.npy" for number in range(3)]
    images[0].parent.mkdir(parents=True)
    for image in images:
        image.write_bytes(bytes(500_000))
    os.utime(images[0], (0, 0))
    assert f"3 decoded images, 1.5 MB, in {folder.parent / 'images'}" in run("cache", "list")[1]
    run("cache", "clear", "aa")
    assert all(image.exists() for image in images)
    assert "removed 1 decoded images, 0.5 MB" in run("cache", "clear", "--unused-days", "3")[1]
    assert [image.exists() for image in images] == [False, True, True]
    assert "removed 2 decoded images, 1.0 MB" in run("cache", "clear")[1]
    assert "decoded images" not in run("cache", "list")[1]
