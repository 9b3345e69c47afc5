"""Which image of a folder belongs to which class and split: names are read, no image is opened."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lit_transfer.data._images import IMAGE_SUFFIXES, is_image

Split = Literal["train", "val", "test"]
SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


@dataclass(frozen=True)
class ClassFolders:
    """What lies in a folder of class folders.

    Attributes:
        images: Image files of each class, sorted; classes are sorted, as torchvision's ImageFolder numbers them.
        skipped: Files that are no image, or lie in no class folder.
    """

    images: dict[str, list[Path]]
    skipped: list[Path]


def find_splits(root: Path) -> dict[Split, Path]:
    """Find the folders of the splits; `{"train": root}` where the class folders lie in root itself.

    Raises:
        FileNotFoundError: If root is no folder.
        ValueError: If the folders name splits, but not so that they can be used.
    """
    if not root.is_dir():
        got = "a file" if root.exists() else "nothing"
        raise FileNotFoundError(f"data.root must be a folder of images; at {str(root)!r} there is {got}.")
    names = [folder.name for folder in _folders(root)]
    split_names = [name for name in names if name in SPLIT_NAMES]
    # A class may be called "train" too: then its folder holds images, not folders.
    if "train" in names and _folders(root / "train"):
        splits = {SPLIT_NAMES[name]: root / name for name in split_names}
        if len(splits) < len(split_names):
            twice = [name for name in split_names if SPLIT_NAMES[name] == "val"]
            raise ValueError(f"data.root={str(root)!r} holds one split under several names: {', '.join(twice)}.")
        return splits
    if names and len(split_names) == len(names):
        raise ValueError(
            f"data.root={str(root)!r} holds {', '.join(names)}: expected class folders in train/ "
            f"({'it has none' if 'train' in names else 'which is missing'})."
        )
    return {"train": root}


def scan_classes(folder: Path) -> ClassFolders:
    """Find the images of each class folder, at any depth.

    Raises:
        ValueError: If there are fewer than two class folders, or one holds no image.
    """
    found = {path.name: _files(path) for path in _folders(folder)}
    loose = [path for path in folder.iterdir() if path.is_file() and is_image(path)]
    _check_count(folder, list(found), loose)
    images = {name: [path for path in files if is_image(path)] for name, files in found.items()}
    for name in images:
        if not images[name]:
            others = f"{len(found[name])} other file(s)" if found[name] else "nothing"
            raise ValueError(
                f"class folder {str(folder / name)!r} in data.root holds no image: expected files ending in "
                f"{', '.join(IMAGE_SUFFIXES)}, got {others}. Add images, or remove the folder."
            )
    skipped = [path for files in found.values() for path in files if not is_image(path)]
    return ClassFolders(images, sorted(skipped + loose))


def check_same_classes(train: Iterable[str], other: Iterable[str], split: Split) -> None:
    """Refuse a split whose classes are not those of train.

    Raises:
        ValueError: Names the classes that only one of them has.
    """
    missing, unknown = sorted(set(train) - set(other)), sorted(set(other) - set(train))
    if missing or unknown:
        only = [
            f"only in {name}: {', '.join(names)}" for name, names in (("train", missing), (split, unknown)) if names
        ]
        raise ValueError(f"data.root has other classes in train than in {split}: {'; '.join(only)}. Expected the same.")


def _check_count(folder: Path, classes: list[str], loose: list[Path]) -> None:
    if len(classes) >= 2:
        return
    got = f"one folder, {classes[0]!r}" if classes else "no folder"
    if loose:
        got += f", and {len(loose)} images that lie in no class folder"
    raise ValueError(
        f"data.root: {str(folder)!r} must hold a folder of images for each of at least two classes; got {got}."
    )


def _folders(path: Path) -> list[Path]:
    """List folders by name; hidden ones (`.ipynb_checkpoints`) and what archives from a Mac add are no classes."""
    return sorted(
        entry
        for entry in path.iterdir()
        if entry.is_dir() and not entry.name.startswith(".") and entry.name != "__MACOSX"
    )


def _files(path: Path) -> list[Path]:
    """List files at any depth, sorted, so that the file system's own order does not matter."""
    return sorted(Path(folder, name) for folder, _, names in os.walk(path, followlinks=True) for name in names)
