"""`keep_decoded=True`: each photo is decoded once, and what is kept is never taken for another file or size."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lit_transfer.backbones import Preprocessing
from lit_transfer.data import ImageFolderData, read_pixels
from lit_transfer.data._kept import KeptPixels
from lit_transfer.features import cache_folder


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIT_TRANSFER_CACHE", str(tmp_path / "cache"))
    return cache_folder("images")


def photo(path: Path, size: tuple[int, int] = (90, 60), seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


class Counting:
    def __init__(self) -> None:
        self.read = 0

    def __call__(self, path: Path) -> torch.Tensor:
        self.read += 1
        return read_pixels(path)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(90, 60), (60, 90), (30, 20)])
def test_evaluation_gets_the_same_from_a_kept_image(tmp_path: Path, size: tuple[int, int], interpolation: str) -> None:
    path, read = photo(tmp_path / "a.png", size), Counting()
    preprocessing = Preprocessing(40, 32, (0.5,) * 3, (0.2,) * 3, interpolation)
    transform, kept = preprocessing.transform(), KeptPixels(read, preprocessing)
    expected = transform(read_pixels(path))
    for _ in range(3):
        assert torch.equal(transform(kept(path)), expected)
    assert read.read == 1


def test_an_image_that_changed_or_is_wanted_otherwise_is_read_anew(tmp_path: Path, folder: Path) -> None:
    path, read = photo(tmp_path / "a.png"), Counting()
    small, large = (Preprocessing(side, side, (0.5,) * 3, (0.2,) * 3) for side in (32, 48))
    for preprocessing in (small, large, small, large):
        assert min(KeptPixels(read, preprocessing)(path).shape[1:]) == preprocessing.resize
    assert read.read == 2
    before = path.stat()
    photo(path, seed=1)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert torch.equal(KeptPixels(read, small)(path), KeptPixels(Counting(), small)(path))
    assert read.read == 3
    assert len(list(folder.glob("*/*.npy"))) == 3


def test_a_kept_file_that_is_cut_off_is_made_again(tmp_path: Path, folder: Path) -> None:
    path, read = photo(tmp_path / "a.png"), Counting()
    kept = KeptPixels(read, Preprocessing(32, 32, (0.5,) * 3, (0.2,) * 3))
    expected = kept(path).clone()
    (file,) = folder.glob("*/*.npy")
    for length in (0, 5, 200):
        file.write_bytes(file.read_bytes()[:length])
        assert torch.equal(kept(path), expected)
    assert read.read == 4


def test_what_cannot_be_kept_is_an_error_that_says_what_to_do(tmp_path: Path, folder: Path) -> None:
    kept = KeptPixels(read_pixels, Preprocessing(32, 32, (0.5,) * 3, (0.2,) * 3))
    folder.parent.mkdir()
    folder.write_text("in the way")
    with pytest.raises(OSError, match=r"decoded images cannot be kept in .*images'.*data\.keep_decoded"):
        kept(photo(tmp_path / "a.png"))


def test_validation_is_the_same_with_workers_and_without(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("ants", "bees"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(3):
                photo(tmp_path / split / name / f"{number}.png", seed=number)
    batches = []
    for options in ({}, {"keep_decoded": True}, {"keep_decoded": True, "num_workers": 2}):
        data = ImageFolderData(tmp_path, 4, image_size=32, **{"num_workers": 0} | options)
        data.setup()
        batches.append([images for images, _ in data.val_dataloader()])
        assert next(iter(data.train_dataloader()))[0].shape == (4, 3, 32, 32)
    for plain, first, second in zip(*batches, strict=True):
        assert torch.equal(plain, first)
        assert torch.equal(plain, second)
