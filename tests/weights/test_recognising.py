"""What is no checkpoint, or one of another library, is named, with the way to convert it."""

import pickle
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from lit_transfer.weights import WeightsError, open_checkpoint


def _zip(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/").replace("_dot_", "."), data)


FOREIGN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "html": (b"\n<!DOCTYPE html><html>", "web page"),
    "hdf5": (b"\x89HDF\r\n\x1a\n\0\0\0\0", "HDF5"),
    "onnx": (b"\x08\x08\x12\x07pytorch\x1a\x03", "ONNX"),
    "tflite": (b"\x1c\0\0\0TFL3\0\0", "TensorFlow Lite"),
    "npy": (b"\x93NUMPY\x01\0", "numpy array"),
    "gguf": (b"GGUF\x03\0\0\0", "GGUF"),
    "json": (b'{"a": 1}', "JSON"),
    "xml": (b"<?xml version='1.0'?><net/>", "XML"),
    "pickle": (pickle.dumps({"a": "b"}), "torch.save did not write"),
    "text": (b"hello", "no checkpoint that is known"),
    "png": (b"\x89PNG\r\n\x1a\n", "PNG"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_formats_are_named(tmp_path: Path, name: str) -> None:
    data, word = FOREIGN[name]
    (tmp_path / "f.pth").write_bytes(data)
    with pytest.raises(WeightsError, match=word):
        open_checkpoint(tmp_path / "f.pth")


def test_foreign_archives_are_named(tmp_path: Path) -> None:
    _zip(tmp_path / "keras", model_dot_weights_dot_h5=b"")
    with pytest.raises(WeightsError, match="Keras"):
        open_checkpoint(tmp_path / "keras")
    _zip(tmp_path / "inside", folder__model_dot_pth=b"")
    with pytest.raises(WeightsError, match="unpack it"):
        open_checkpoint(tmp_path / "inside")
    with tarfile.open(tmp_path / "t", "w") as archive:
        archive.addfile(tarfile.TarInfo("model_weights.ckpt"))
    with pytest.raises(WeightsError, match=r"tar archive .*model_weights.ckpt"):
        open_checkpoint(tmp_path / "t")


@pytest.mark.parametrize("magic", [b"\x1f\x8b", b"PK", b"\x80\x02", b"\x80\x05", b"BZ"])
def test_the_length_of_a_safetensors_header_may_be_the_magic_of_another_format(tmp_path: Path, magic: bytes) -> None:
    length = int.from_bytes(magic, "little")
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(length)
    (tmp_path / "f").write_bytes(length.to_bytes(8, "little") + header + bytes(4))
    assert open_checkpoint(tmp_path / "f").format == "safetensors"


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="0 checkpoints"):
        open_checkpoint(tmp_path)
    for name in ("a.pth", "b.pth"):
        torch.save({"w": torch.ones(1)}, tmp_path / name)
    with pytest.raises(WeightsError):
        open_checkpoint(tmp_path)
