"""`lit-transfer cache list | clear`: which features and decoded images are kept, and how to be rid of them."""

import json
import math
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path

from lit_transfer.cli._parsing import CommandParser, nearest
from lit_transfer.features import cache_folder, list_entries


@dataclass(frozen=True)
class Stored:
    """One entry: the features of one set of samples at one boundary.

    Attributes:
        key: The name of its folder: a fingerprint of all that the features depend on.
        module: Class of the LightningModule that made it.
        boundary: Dotted name of the module in it whose output is stored.
        split: Which samples: train, val.
        features: How many.
        shape: Shape of each.
        dtype: Their dtype.
        size: Size on the disk in bytes.
        done: Which fraction is there; below 1 for one that was interrupted, or is being made.
        used: When it was made or used last, ISO 8601.
    """

    key: str
    module: str
    boundary: str
    split: str
    features: int
    shape: list[int]
    dtype: str
    size: int
    done: float
    used: str


class Images:
    """The decoded images that `ImageFolderData(keep_decoded=True)` keeps."""

    def __init__(self, folder: Path) -> None:
        """Look them up.

        Args:
            folder: Where they are.
        """
        self.folder, self.files = folder, sorted(folder.glob("*/*.npy"))

    def print(self) -> None:
        """Say how many there are, if there are any."""
        if self.files:
            size = _megabytes(file.stat().st_size for file in self.files)
            print(f"{len(self.files)} decoded images, {size}, in {self.folder}")

    def clear(self, unused_days: float | None) -> None:
        """Remove those that were not read for so many days; None for all."""
        latest = math.inf if unused_days is None else time.time() - unused_days * 86_400
        old = [(file, found.st_size) for file in self.files if (found := file.stat()).st_atime <= latest]
        for file, _ in old:
            file.unlink()
        if old:
            print(f"removed {len(old)} decoded images, {_megabytes(size for _, size in old)}, from {self.folder}")


def main(argv: Sequence[str]) -> None:
    """Run the command with `argv`, whose first word is its name."""
    arguments = _parser().parse_args(argv[1:])
    folder = cache_folder() if arguments.folder is None else Path(arguments.folder)
    entries = _stored(folder)
    # Those of a folder of one's own hold features alone.
    images = Images(cache_folder("images")) if arguments.folder is None else None
    if arguments.action == "clear":
        _clear(folder, _chosen(entries, arguments.keys, arguments.unused_days))
        if images is not None and not arguments.keys:
            images.clear(arguments.unused_days)
    elif arguments.json:
        for entry in entries:
            print(json.dumps(asdict(entry)))
    else:
        _print(folder, entries)
        if images is not None:
            images.print()


def _parser() -> CommandParser:
    parser = CommandParser(prog="lit-transfer cache", description=__doc__)
    actions = parser.add_subparsers(dest="action", metavar="list | clear", required=True)
    listing = actions.add_parser("list", help="show what is stored")
    listing.add_argument("--json", action="store_true", help="one JSON object a line")
    clearing = actions.add_parser("clear", help="remove what is stored; a run makes again what it needs")
    clearing.add_argument("keys", nargs="*", help="the entries to remove, by the beginning of their key; all if none")
    clearing.add_argument("--unused-days", type=float, help="only those that were not used for so many days")
    for action in (listing, clearing):
        action.add_argument("--folder", help="where features are stored, if FeatureCaching was given a folder")
    return parser


def _stored(folder: Path) -> list[Stored]:
    entries = []
    for path, about, done in list_entries(folder):
        layout = about["layout"]
        used = datetime.fromtimestamp((path / "about.json").stat().st_mtime)
        entries.append(
            Stored(
                path.name.removesuffix(".part"),
                about.get("module", "?"),
                about.get("boundary", "?"),
                about.get("split", "?"),
                layout["rows"],
                layout["shape"],
                layout["dtype"],
                sum(file.stat().st_size for file in path.iterdir()),
                done,
                used.isoformat(timespec="seconds"),
            )
        )
    return sorted(entries, key=lambda entry: (entry.module, entry.boundary, entry.split, entry.key))


def _chosen(entries: Sequence[Stored], keys: Sequence[str], unused_days: float | None) -> list[Stored]:
    """Choose entries by the beginnings of their keys and by age.

    Raises:
        ValueError: If a key is that of no entry, or of several.
    """
    for key in keys:
        found = [entry.key for entry in entries if entry.key.startswith(key)]
        if len(found) != 1:
            near = f" {', '.join(found)}." if found else nearest(key, [entry.key for entry in entries])
            raise ValueError(f"{key!r} begins the key of {len(found)} entries; expected one.{near}")
    latest = datetime.max if unused_days is None else datetime.now() - timedelta(days=unused_days)
    return [
        entry
        for entry in entries
        if (not keys or any(entry.key.startswith(key) for key in keys)) and datetime.fromisoformat(entry.used) <= latest
    ]


def _clear(folder: Path, entries: Sequence[Stored]) -> None:
    for entry in entries:
        shutil.rmtree(folder / (entry.key if entry.done == 1 else f"{entry.key}.part"))
    print(f"removed {len(entries)} entries, {_megabytes(entry.size for entry in entries)}, from {folder}")


def _print(folder: Path, entries: Sequence[Stored]) -> None:
    for entry in entries:
        shape = "x".join(map(str, entry.shape))
        state = "" if entry.done == 1 else f", {entry.done:.0%} done"
        print(
            f"{entry.key[:12]}  {_megabytes([entry.size]):>11}  {entry.used}  {entry.module} at {entry.boundary}, "
            f"{entry.split}: {entry.features} x {shape} {entry.dtype}{state}"
        )
    print(f"{len(entries)} entries, {_megabytes(entry.size for entry in entries)}, in {folder}")


def _megabytes(sizes: Iterable[int]) -> str:
    return f"{sum(sizes) / 1e6:.1f} MB"
