"""The image files that the rows of a table name."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_transfer.data._images import why_broken
from lit_transfer.data._table_faults import Faults

_CORRECT = "Correct the paths, which start from data.root, or leave these rows out."
_REPAIR = "Repair the file, or leave these rows out."


def find_images(cells: Sequence[Any], root: Path, faults: Faults, *, verify: bool) -> list[Path]:
    """Find the file of each row: below root, there, and, if `verify`, with the header of an image.

    Symbolic links below root are followed; `..` is resolved in the text of the path.

    Returns:
        The path of each row, of bad rows too.
    """
    base = Path(os.path.abspath(root))  # noqa: PTH100  (resolve() would follow links)
    paths = [Path(os.path.normpath(base / str(cell))) for cell in cells]
    opened: dict[Path, str | None] = {}
    for row, (cell, path) in enumerate(zip(cells, paths, strict=True)):
        if what := _wrong(cell, path, base):
            faults.add(row, what, _CORRECT)
        elif verify:
            if path not in opened:
                opened[path] = why_broken(path)
            if why := opened[path]:
                faults.add(row, f"broken image {cell!r}: {why}", _REPAIR)
    return paths


def _wrong(cell: Any, path: Path, base: Path) -> str | None:
    if not isinstance(cell, str) or cell == "":
        return "the path is empty" if cell == "" else f"{cell!r} is no path"
    if not path.is_relative_to(base):
        return f"{cell!r} lies outside of data.root={str(base)!r}"
    return None if path.is_file() else f"there is no file {cell!r} in data.root={str(base)!r}"
