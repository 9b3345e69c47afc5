"""The safetensors format: eight bytes of length, a JSON header, the tensors' bytes.

Source: the format section of the safetensors README (little endian, row-major, no holes).
"""

import json
import math
from itertools import pairwise
from typing import IO, Any

import torch

from lit_transfer.weights._content import Content
from lit_transfer.weights._errors import WeightsError
from lit_transfer.weights._lazy import FileTensor, SourceFile, Storage, strides
from lit_transfer.weights._stand_ins import InertDict

MAX_HEADER_BYTES = 32 * 2**20
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "BOOL": "bool",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
}


def read_safetensors(file: SourceFile) -> Content:
    """Read the header of a safetensors file; `__metadata__` becomes the attributes of the dictionary."""
    with file.path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > min(MAX_HEADER_BYTES, file.size - 8):
            raise WeightsError(f"{file.path}: a safetensors header of {length:,} bytes: truncated or damaged")
        header = _json(stream.read(length), file)
    root = InertDict()
    metadata = header.pop("__metadata__", {})
    if isinstance(metadata, dict):
        root.attributes.update({key: value for key, value in metadata.items() if isinstance(value, str)})
    for name, entry in header.items():
        root[name] = _tensor(name, entry, file, 8 + length)
    _require_apart(header, file)
    # Tied tensors, as safetensors' save_model writes them: name -> the name that was kept.
    tied = {name: kept for name, kept in root.attributes.items() if name not in header and kept in header}
    root.update({name: root[kept] for name, kept in tied.items()})
    return Content(root, "safetensors", file)


def _json(data: bytes, file: SourceFile) -> dict[str, Any]:
    try:
        header = json.loads(data, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{file.path}: the safetensors header is damaged ({error})") from error
    if not isinstance(header, dict):
        raise WeightsError(f"{file.path}: the safetensors header is no JSON object")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _tensor(name: str, entry: Any, file: SourceFile, start: int) -> FileTensor:
    try:
        shape, (first, last) = tuple(entry["shape"]), entry["data_offsets"]
        dtype = getattr(torch, _DTYPES[entry["dtype"]])
        whole = all(type(number) is int and number >= 0 for number in (*shape, first, last))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"{file.path}: the header's entry for {name!r} cannot be understood ({error})") from error
    if not whole or last - first != math.prod(shape) * dtype.itemsize or start + last > file.size:
        raise WeightsError(
            f"{file.path}: {name!r} of shape {list(shape)} lies at bytes {first} to {last} "
            f"of {file.size - start}: truncated or damaged"
        )

    position = start + int(first)

    def locate(handle: IO[bytes]) -> int:
        return position

    return FileTensor(Storage(file, last - first, locate), dtype, shape, strides(shape))


def _require_apart(header: dict[str, Any], file: SourceFile) -> None:
    """Raise a WeightsError if two tensors share bytes: ties are told in the metadata."""
    places = sorted((*entry["data_offsets"], name) for name, entry in header.items())
    for (_, end, name), (first, _, other) in pairwise(places):
        if first < end:
            raise WeightsError(f"{file.path}: {name!r} and {other!r} overlap: damaged")
