"""Writing a checkpoint in several files with an index, as huggingface's libraries lay it out.

Layout: `model-00001-of-00003.safetensors`, ..., and `model.safetensors.index.json` with {"metadata": {"total_size":
bytes}, "weight_map": {NAME: FILE}}. Source: `split_torch_state_dict_into_shards` of huggingface_hub.
"""

import json
import os
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_SIZE = re.compile(r"^(\d+(?:\.\d+)?) *([KMGT]?)(i?)B$", re.IGNORECASE)


def size_in_bytes(size: int | str) -> int:
    """The number of bytes that "2GB" (2 * 10^9), "500 MiB" (500 * 2^20) or an integer means.

    Raises:
        ValueError: It is none of these, or not positive.
    """
    found = _SIZE.match(size.strip()) if isinstance(size, str) else None
    power = " KMGT".index(found[2].upper() or " ") if found else 0
    count = int(float(found[1]) * (1024 if found[3] else 1000) ** power) if found else size
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(
            f"shards is the largest size of a file, such as '2GB', '500MiB' or a number of bytes: {size!r}"
        )
    return count


def split(sizes: Mapping[str, tuple[object, int]], largest: int) -> list[list[str]]:
    """Names in order, in parts of at most `largest` bytes; a larger tensor is a part of its own.

    Args:
        sizes: Name -> (place, bytes). Names of one place are one tensor, and stay together.
        largest: Bytes.
    """
    parts: list[list[str]] = []
    left = 0
    part_of: dict[object, int] = {}
    for name, (place, nbytes) in sizes.items():
        if place in part_of:
            parts[part_of[place]].append(name)
            continue
        if not parts or nbytes > left:
            parts.append([])
            left = largest
        parts[-1].append(name)
        part_of[place] = len(parts) - 1
        left -= nbytes
    return parts


def write_shards(
    path: Path, parts: Sequence[Sequence[str]], write: Callable[[Sequence[str], Path], int], metadata: Mapping[str, str]
) -> Path:
    """Write all parts beside each other under temporary names, then rename them, the index last.

    Args:
        path: The name that one file would have.
        parts: Names of the tensors of each file.
        write: Writes tensors to a path, flushed, and returns their bytes.
        metadata: Text for the index.

    Returns:
        The path of the index.
    """
    index = path.with_name(f"{path.name}.index.json")
    finals = [path.with_name(f"{path.stem}-{i:05}-of-{len(parts):05}{path.suffix}") for i in range(1, len(parts) + 1)]
    waiting = {final: final.with_name(f".{final.name}.{uuid.uuid4().hex}") for final in (*finals, index)}
    try:
        total = sum(write(names, waiting[final]) for final, names in zip(finals, parts, strict=True))
        weight_map = {name: final.name for final, names in zip(finals, parts, strict=True) for name in names}
        about = {**metadata, "total_size": total}
        _write_text(waiting[index], json.dumps({"metadata": about, "weight_map": weight_map}, indent=2))
        index.unlink(missing_ok=True)  # an old index must never name new files
        for final, temporary in waiting.items():
            temporary.replace(final)
    finally:
        for temporary in waiting.values():
            temporary.unlink(missing_ok=True)
    return index


def _write_text(path: Path, text: str) -> None:
    with path.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
