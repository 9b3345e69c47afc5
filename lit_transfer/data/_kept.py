"""Decoded images kept on disk, so that each file is decoded once and not once an epoch."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from lit_transfer.backbones import Preprocessing
from lit_transfer.features import cache_folder

FORMAT = 1


class KeptPixels:
    """Reads the pixels of an image as another reader does, shrunk to what evaluation wants, and keeps them.

    There is an `.npy` file, uint8 (H, W, C), for each image in `cache_folder("images")`, named by the path, the size
    and the time of the image's file and by what is done to it. So an image that has changed is read anew, and
    processes that read side by side need not know of each other.
    """

    def __init__(self, read: Callable[[Path], Tensor], preprocessing: Preprocessing) -> None:
        """Remember how images are read.

        Args:
            read: Gives the pixels of an image's file, uint8 (C, H, W), in the mode of the preprocessing.
            preprocessing: Tells to which length the shorter side is shrunk, and how; a smaller image stays as it is.
        """
        self.read, self.preprocessing = read, preprocessing
        interpolation = v2.InterpolationMode(preprocessing.interpolation)
        resize = v2.Resize(preprocessing.resize, interpolation=interpolation, antialias=True)
        self._shrink = v2.Compose([preprocessing.opening(), resize, v2.ToImage(), v2.ToPureTensor()])

    def __call__(self, path: Path) -> Tensor:
        """Give the pixels, uint8 (C, H, W).

        Raises:
            OSError: The pixels cannot be kept.
        """
        place = self._place(path)
        try:
            pixels = np.load(place)
        except (OSError, ValueError, EOFError):  # not there, or cut off with the machine's power
            whole = self.read(path)
            shrunk: Tensor = self._shrink(whole) if min(whole.shape[1:]) > self.preprocessing.resize else whole
            pixels = shrunk.permute(1, 2, 0).contiguous().numpy()
            _keep(pixels, place)
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def _place(self, path: Path) -> Path:
        found = path.stat()
        done = self.preprocessing
        on = (FORMAT, done.mode, done.resize, done.interpolation, path.absolute(), found.st_size, found.st_mtime_ns)
        name = hashlib.blake2b(repr(on).encode(), digest_size=16).hexdigest()
        return cache_folder("images") / name[:2] / f"{name[2:]}.npy"


def _keep(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], place: Path) -> None:
    temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex}.part")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.save(file, pixels)
        temporary.replace(place)
    except OSError as error:
        why = "the disk is full" if error.errno == errno.ENOSPC else str(error)
        raise OSError(
            error.errno,
            f"decoded images cannot be kept in {str(cache_folder('images'))!r}: {why}. Set LIT_TRANSFER_CACHE to "
            "another folder, make room with `lit-transfer cache clear`, or leave out data.keep_decoded.",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
