"""On which images a file is compared with its module: those given, those of the run, or two photos that are there."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import Tensor

from lit_transfer.backbones import Preprocessing
from lit_transfer.data import is_image, read_pixels
from lit_transfer.predictor import find_images

_BATCH = 16
_OF_A_RUN = 16  # images that are taken out of a run's data


@dataclass(frozen=True)
class Images:
    """Images, and where they came from in words."""

    each: Sequence[Path | Tensor]
    source: str

    def batches(self, preprocessing: Preprocessing) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pixels, uint8 (N, C, crop, crop), beside the same images normalised; the first batch is of one."""
        cut, ready = preprocessing.cutting(), preprocessing.transform()
        for batch in (self.each[:1], *(self.each[i : i + _BATCH] for i in range(1, len(self.each), _BATCH))):
            opened = [_pixels(image, preprocessing) for image in batch]
            pixels = torch.stack([cut(image).as_subclass(Tensor) for image in opened])
            yield pixels, torch.stack([ready(image) for image in opened])


def find(given: str | Path | Sequence[str | Path] | None, checkpoint: Path | None) -> Images:
    """Choose the images on which a file is compared.

    Args:
        given: A folder, an image, or several; all of them are taken.
        checkpoint: Where the module is from: beside it may lie the configuration of the run, which names its data.

    Raises:
        FileNotFoundError: If what is given does not exist.
        ValueError: If a folder holds no image.
    """
    if given is not None:
        places = [given] if isinstance(given, str | Path) else list(given)
        paths = [path for place in places for path in find_images(place)]
        if not paths:
            raise ValueError("images is an empty list: give a folder or paths, or leave it out.")
        return Images(paths, f"{_images(len(paths))} of {', '.join(map(str, places[:3]))}")
    folder = None if checkpoint is None else _folder_of_run(checkpoint)
    paths = [] if folder is None else sorted(path for path in folder.rglob("*") if is_image(path))
    if paths:
        few = paths[:: -(-len(paths) // _OF_A_RUN)]
        return Images(few, f"{len(few)} of the {_images(len(paths))} in {folder}, the data of the run")
    photos = _photos()
    return Images(photos, f"{_images(len(photos))} cut from scikit-learn's two photos; --images FOLDER takes yours")


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _folder_of_run(checkpoint: Path) -> Path | None:
    """Find the folder of images that `lit-transfer fit` was run on, if its configuration and the folder are there."""
    for place in (checkpoint.parent, checkpoint.parent.parent):
        if not (place / "config.yaml").is_file():
            continue
        try:
            data = yaml.safe_load((place / "config.yaml").read_text(encoding="utf-8"))["data"]["init_args"]
            folder = Path(data["root"] if data.get("root") is not None else Path(data["table"]).parent)
        except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError):  # somebody else's file
            continue
        validation = [folder / name for name in ("val", "valid", "validation") if (folder / name).is_dir()]
        return next(iter(validation), folder) if folder.is_dir() else None
    return None


def _photos() -> list[Tensor]:
    """Give the two photos that come with scikit-learn, whole and in quarters: real pixels that are always there."""
    from sklearn.datasets import load_sample_images

    photos = [torch.from_numpy(photo.copy()).permute(2, 0, 1) for photo in load_sample_images().images]
    quarters = [part for photo in photos for half in photo.chunk(2, dim=1) for part in half.chunk(2, dim=2)]
    return [*photos, *quarters]


def _pixels(image: Path | Tensor, preprocessing: Preprocessing) -> Tensor:
    """Give the pixels of an image in the channels that the module takes."""
    if isinstance(image, Path):
        return read_pixels(image, preprocessing.mode)
    channels = torch.arange(len(preprocessing.mean)) % len(image)
    return image[channels]
