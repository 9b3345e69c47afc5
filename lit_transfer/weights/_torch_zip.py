"""Torch's zip format: a pickle beside one stored member for each storage.

Layout: `NAME/data.pkl`, `NAME/data/KEY` (raw bytes, stored, aligned to 64), `NAME/byteorder`, `NAME/version`.
Source: torch/serialization.py and caffe2/serialize/inline_container.cc.
"""

import zipfile
from dataclasses import replace
from functools import partial
from typing import Any

from lit_transfer.weights._builders import storage_dtype
from lit_transfer.weights._content import Content
from lit_transfer.weights._errors import WeightsError
from lit_transfer.weights._inert import MAX_PICKLE_BYTES, unpickle_bytes
from lit_transfer.weights._lazy import SourceFile, Storage
from lit_transfer.weights._stand_ins import TypedStorage
from lit_transfer.weights._torchscript import is_script, leave_out_plain_tensors, state_names
from lit_transfer.weights._zip_members import ZIP_ERRORS, Window, damaged_zip, first_byte, require_apart, verify_member

MAX_MEMBERS = 1_000_000


def read_torch_zip(file: SourceFile, *, verify: bool = True, window: tuple[int, int] | None = None) -> Content:
    """Read the pickle of a torch zip file; the storages stay in the file.

    Args:
        file: The file.
        verify: Whether the storages get a checksum to be compared with when they are read.
        window: First byte and length of the archive, if it is a part of the file.
    """
    start, size = window or (0, file.size)
    try:
        with file.open() as handle, zipfile.ZipFile(Window(handle, start, size)) as archive:
            require_apart(file, archive.infolist())
            members = {info.filename: info for info in archive.infolist()}
            root = _root(file, members)
            data = _small_member(archive, members[root + "data.pkl"], file, start)
            order = members.get(root + "byteorder")
            swapped = order is not None and _small_member(archive, order, file, start) == b"big"
            script = is_script(list(members), root)
            kept = state_names(archive, root) if script else {}
    except ZIP_ERRORS as error:
        if isinstance(error, WeightsError):
            raise
        raise damaged_zip(file, error) from error
    storages: dict[str, Storage] = {}

    def storage(pid: Any) -> Any:
        kind, key, location, count = _storage_id(pid)
        dtype = storage_dtype(kind)
        if key not in storages:
            info = _member(file, members, f"{root}data/{key}", count * dtype.itemsize, size)
            found = _storage(file, info, count * dtype.itemsize, start)
            storages[key] = replace(found, location=location, swapped=swapped, verify=found.verify if verify else None)
        return TypedStorage(storages[key], dtype)

    content, names = unpickle_bytes(data, storage)
    leave_out_plain_tensors(content, kept)
    return Content(content, "TorchScript archive" if script else "torch zip", file, names)


def _root(file: SourceFile, members: dict[str, zipfile.ZipInfo]) -> str:
    """The folder inside the archive that holds data.pkl, with its slash."""
    if len(members) > MAX_MEMBERS:
        raise WeightsError(f"{file.path} is a zip file of {len(members):,} members: no checkpoint is like that")
    roots = [name.removesuffix("data.pkl") for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
    if not roots:
        some = ", ".join(list(members)[:5]) or "nothing"
        raise WeightsError(f"{file.path} is a zip file without data.pkl (it holds {some}): not a torch checkpoint")
    return min(roots, key=len)


def _small_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, file: SourceFile, start: int) -> bytes:
    """The bytes of a member. A stored one cannot be larger than the file; a packed one is a bomb if it says more."""
    if info.file_size > MAX_PICKLE_BYTES or info.file_size > 100 * file.size:
        raise WeightsError(f"{file.path}: {info.filename} declares {info.file_size:,} bytes: damaged, or a zip bomb")
    if info.CRC == 0 and info.compress_type == zipfile.ZIP_STORED:  # not computed: zipfile would call it bad
        with file.open() as handle:
            handle.seek(first_byte(file, start + info.header_offset, info.filename, handle))
            return handle.read(info.file_size)
    with archive.open(info) as member:
        return member.read(info.file_size)


def _storage_id(pid: Any) -> tuple[Any, str, str, int]:
    if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
        raise WeightsError("the pickle refers to something outside it that is no storage")
    _, kind, key, location, count = pid[:5]
    if not isinstance(key, str | int) or type(count) is not int or count < 0:
        raise WeightsError("the pickle refers to a storage without a key or a length")
    return kind, str(key), str(location), count


def _member(
    file: SourceFile, members: dict[str, zipfile.ZipInfo], name: str, nbytes: int, size: int
) -> zipfile.ZipInfo:
    """The stored member of a storage, which must have its bytes and lie inside the archive of `size` bytes."""
    info = members.get(name)
    if info is None:
        raise WeightsError(f"{file.path} has no member {name!r}, which its pickle refers to: damaged")
    if info.compress_type != zipfile.ZIP_STORED:
        raise WeightsError(f"{file.path} was zipped again with compression: unpack it and zip it with `zip -0 -r`")
    if info.file_size < nbytes or info.header_offset + info.file_size > size:
        raise WeightsError(f"{file.path}: member {name!r} has {info.file_size} bytes where {nbytes} are needed")
    return info


def _storage(file: SourceFile, info: zipfile.ZipInfo, nbytes: int, start: int) -> Storage:
    locate = partial(first_byte, file, start + info.header_offset, info.filename)
    verify = partial(verify_member, file, info, start=start) if info.CRC else None
    return Storage(file, nbytes, locate, verify=verify, crc=info.CRC if info.file_size == nbytes else None)
