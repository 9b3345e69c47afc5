"""Which format a file has, by its content and never by its suffix; and how to convert what is not read here."""

import zipfile
from collections.abc import Callable
from typing import Literal, TypeAlias

from lit_transfer.weights._deepspeed import how_to_convert, is_part_of_zero
from lit_transfer.weights._errors import WeightsError
from lit_transfer.weights._lazy import SourceFile
from lit_transfer.weights._npz import is_npz
from lit_transfer.weights._tar import tar_members
from lit_transfer.weights._unpacked import GZIP

Format: TypeAlias = Literal["gzip", "npz", "zip", "legacy", "tar", "pickle", "safetensors", "index"]
_HEAD_BYTES = 4096

# First bytes -> what it is, and what to do. A later format moves from here to its own reader.
_FOREIGN: dict[bytes, str] = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: run `git lfs pull` in its repository",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file (Keras, or MATLAB): load it in its own framework and save a dictionary of "
    "arrays with safetensors.numpy.save_file",
    b"\x93NUMPY": "a single numpy array (.npy): put it in a dictionary with its name and pass that as the source",
    b"GGUF": "a GGUF file: convert it with the gguf package to safetensors",
    b"BZh": "compressed with bzip2: unpack it with bunzip2",
    b"\xfd7zXZ\x00": "compressed with xz: unpack it with unxz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it with unzstd",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it",
    b"Rar!": "a rar archive: unpack it",
    b"%PDF": "a PDF",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"\x7fELF": "a program",
    b"\x12\x01\x00\x00\x00\x00\x00\x00": "an MXNet file: load it with mxnet.nd.load and save the arrays with "
    "safetensors.numpy.save_file",
}


def recognise(file: SourceFile) -> Format:
    """The format of the file.

    Raises:
        WeightsError: The file is empty, or none that is read here; the message says what it is and how to convert it.
    """
    if file.path.suffix == ".distcp" or file.path.name == ".metadata":
        raise WeightsError(f"{file.path} is a part of a distributed checkpoint: give its folder, {file.path.parent}")
    if is_part_of_zero(file.path.name) and (told := how_to_convert(file.path.parent)):
        raise WeightsError(f"{file.path.name} holds one process' pieces: {told}")
    with file.path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    if not head:
        raise WeightsError(f"{file.path} is empty: it was not written to its end, or not downloaded")
    for matches, name in _READ:
        if matches(head, file):
            return name
    raise WeightsError(f"{file.path} is {_foreign(head, file)}")


def _is_gzip(head: bytes, file: SourceFile) -> bool:
    return head.startswith(GZIP)


def _is_npz(head: bytes, file: SourceFile) -> bool:
    return is_npz(head)


def _is_zip(head: bytes, file: SourceFile) -> bool:
    if not head.startswith(b"PK"):
        return False
    try:
        with zipfile.ZipFile(file.path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return True  # the reader tells what is wrong with it
    if any(name == "data.pkl" or name.endswith("/data.pkl") for name in names):
        return True
    raise WeightsError(f"{file.path} is {_foreign_zip(names)}")


def _foreign_zip(names: list[str]) -> str:
    if any(name.endswith(".weights.h5") for name in names):
        return "a Keras file: load it with keras and save the arrays with safetensors.numpy.save_file"
    inside = [name for name in names if name.endswith((".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".tar"))]
    if inside:
        return f"a zip archive with {inside[0]!r} in it: unpack it and give that file"
    return f"a zip archive without tensors (it holds {', '.join(names[:5]) or 'nothing'})"


def _is_legacy(head: bytes, file: SourceFile) -> bool:
    # The magic number of torch.save as LONG1 of ten bytes, after PROTO and perhaps FRAME; protocol 1 has no PROTO.
    return b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19." in head[:32] or head.startswith(b"L119547037146038801333356L\n.")


def _is_pickle(head: bytes, file: SourceFile) -> bool:
    return head[:1] == b"\x80" and b"\2" <= head[1:2] <= b"\5"


def _is_tar(head: bytes, file: SourceFile) -> bool:
    # The oldest torch files have no magic word of their own; GNU, PAX and old tars differ in theirs.
    if head[257:262] != b"ustar" and not head.startswith((b"storages\0", b"tensors\0", b"pickle\0", b"sys_info\0")):
        return False
    with file.path.open("rb") as stream:
        names = [name for name, _, _ in tar_members(stream, file)]
    if {"storages", "tensors", "pickle"} & set(names):
        return True
    raise WeightsError(
        f"{file.path} is a tar archive (it holds {', '.join(names[:5]) or 'nothing'}): unpack it, give a file of it"
    )


def _is_safetensors(head: bytes, file: SourceFile) -> bool:
    return len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32


def _is_index(head: bytes, file: SourceFile) -> bool:
    return head.lstrip().startswith(b"{") and file.path.suffix == ".json" and file.path.name.endswith(".index.json")


_READ: tuple[tuple[Callable[[bytes, SourceFile], bool], Format], ...] = (
    (_is_safetensors, "safetensors"),  # first: its length may be the magic bytes of others, and never the reverse
    (_is_gzip, "gzip"),
    (_is_npz, "npz"),
    (_is_zip, "zip"),
    (_is_legacy, "legacy"),
    (_is_pickle, "pickle"),
    (_is_tar, "tar"),
    (_is_index, "index"),
)


def _foreign(head: bytes, file: SourceFile) -> str:
    for start, text in _FOREIGN.items():
        if head.startswith(start):
            return text
    text_head = head.lstrip().lower()
    if text_head.startswith((b"<!doctype html", b"<html")):
        return "a web page, not a checkpoint: the download gave an error or a log-in page; download it again"
    if text_head.startswith((b"<?xml", b"<net")):
        return "an XML file; an OpenVINO model must be exported again from its source"
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite file: convert the model it was made from"
    if head[:1] == b"\x08" and any(word in head for word in (b"onnx", b"pytorch", b"ir_version", b"graph")):
        return "an ONNX file: read its initializers with onnx.numpy_helper.to_array and pass them as a dictionary"
    if text_head.startswith((b"{", b"[")):
        return "a JSON file; the index of a sharded checkpoint must end in .index.json"
    if head.startswith((b"(d", b"(l", b"}q", b"]q")):
        return "a pickle of the oldest protocols: load it where it was written and save it with torch.save"
    return f"no checkpoint that is known here (it begins with {head[:16]!r})"
