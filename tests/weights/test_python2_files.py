"""Files of Python 2 and of the first releases of torch, compared with what torch's own readers make of them."""

import collections
import io
import pickle
import struct
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from python2 import PICKLE, dumps
from small_network import equal, values
from torch import Tensor, nn
from torchvision.models import resnet18

from lit_transfer.weights import WeightsError, load_weights, open_checkpoint


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(3)
    model: nn.Module = resnet18(num_classes=3)
    return model


def save(content: Any, path: Path) -> None:
    torch.save(content, path, pickle_module=PICKLE, pickle_protocol=2, _use_new_zipfile_serialization=False)


def torchs(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(path, encoding="latin1", weights_only=False)


def test_the_writer_writes_what_python_2_wrote() -> None:
    data = dumps({"a": b"b", "c": collections.OrderedDict(d=1), "e": {1}, "f": [2**70, 0.5, None, True, "x" * 300]})
    assert b"\x8c" not in data
    assert b"X" not in data
    assert b"__builtin__\nset" in data
    assert pickle.loads(data, encoding="latin1")["f"][0] == 2**70


def test_places365(tmp_path: Path, network: nn.Module) -> None:
    state = collections.OrderedDict((f"module.{name}", tensor) for name, tensor in network.state_dict().items())
    content = {"epoch": 90, "arch": "resnet18", "state_dict": state, "best_prec1": 54.7}
    save(content, tmp_path / "resnet18_places365.pth.tar")
    assert equal(torchs(tmp_path / "resnet18_places365.pth.tar")["state_dict"], state)
    model = resnet18(num_classes=3)
    report = load_weights(model, tmp_path / "resnet18_places365.pth.tar")
    assert equal(values(model), values(network))
    assert (report.prefix, report.key) == ("module", "state_dict")
    assert open_checkpoint(tmp_path / "resnet18_places365.pth.tar").root["arch"] == "resnet18"


def test_a_whole_model_of_places365(tmp_path: Path, network: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch finds no source code for some
        save(network, tmp_path / "whole_resnet18_places365_python36.pth.tar")
    model = resnet18(num_classes=3)
    load_weights(model, tmp_path / "whole_resnet18_places365_python36.pth.tar")
    assert equal(values(model), values(network))


def test_arrays_of_python_2(tmp_path: Path) -> None:
    arrays = {
        "weight": np.arange(300, dtype=np.float32).reshape(30, 10),
        "columns": np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3)),
    }
    save({"state_dict": arrays, "best": np.float64(0.5)}, tmp_path / "f")
    checkpoint = open_checkpoint(tmp_path / "f")
    read = checkpoint.read()
    assert all(np.array_equal(read[name].numpy(), array) for name, array in arrays.items())
    assert checkpoint.root["best"] == 0.5


def test_objects_of_the_lowest_protocols(tmp_path: Path) -> None:
    storage = "(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI4\ntQ"
    tensor = f"ctorch._utils\n_rebuild_tensor\n({storage}I0\n(I2\nI2\nt(I2\nI1\nttR"
    made = f"ccopy_reg\n__newobj__\n(ctorch.nn.parameter\nParameter\n{tensor}tR(I01\nI00\nNtb"
    head = dumps(0x1950A86A20F9469CFC6C) + dumps(1001) + dumps({"little_endian": True})
    stored = struct.pack("<q", 4) + torch.ones(4).numpy().tobytes()
    (tmp_path / "f").write_bytes(head + f"(dS'weight'\n{made}s.".encode() + dumps(["0"]) + stored)
    assert torch.equal(open_checkpoint(tmp_path / "f").read()["weight"], torch.ones(2, 2))


def _storage(key: int, kind: Any, tensor: Tensor) -> bytes:
    return dumps((key, "cpu", kind)) + struct.pack("<q", tensor.numel()) + tensor.numpy().tobytes()


def _table(
    key: int, storage: int | None, kind: Any, *, sizes: tuple[int, ...], strides: tuple[int, ...], first: int = 0
) -> bytes:
    numbers = (*sizes, *strides, first)
    return dumps((key, storage, kind)) + struct.pack(f"<ii{len(numbers)}q", len(sizes), 0, *numbers)


def _content(names: dict[str, bytes]) -> bytes:
    items = (dumps(name)[2:-1] + dumps(key)[2:-1] + pickle.BINPERSID for name, key in names.items())
    return b"\x80\x02}(" + b"".join(items) + b"u."


STORAGES = (
    dumps(2) + _storage(7, torch.FloatStorage, torch.arange(12.0)) + _storage(8, torch.LongStorage, torch.arange(3))
)
VIEWS = dumps([(9, 7, 4, 6)])  # six floats of storage 7 from the fifth on
TABLES = (
    _table(100, 7, torch.FloatTensor, sizes=(3, 4), strides=(4, 1))
    + _table(101, 8, torch.LongTensor, sizes=(2,), strides=(1,), first=1)
    + _table(102, 9, torch.FloatTensor, sizes=(2, 2), strides=(1, 3), first=1)
    + _table(103, 8, torch.LongTensor, sizes=(), strides=())
)
OLDEST = {
    "sys_info": dumps({}),
    "pickle": _content({"whole": b"100", "long": b"101", "view": b"102", "number": b"103"}),
    "tensors": dumps(4) + TABLES,
    "storages": STORAGES + VIEWS,
}


def write_tar(path: Path, kind: int, members: dict[str, bytes], **headers: str) -> None:
    with tarfile.open(path, "w:", format=kind) as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            member.pax_headers = {field: text.format(len(data)) for field, text in headers.items()}
            archive.addfile(member, io.BytesIO(data))


def same_as_torchs(path: Path) -> bool:
    expected, read = torchs(path), open_checkpoint(path).read()
    return list(read) == list(expected) and all(
        read[name].dtype == tensor.dtype and torch.equal(read[name], tensor) for name, tensor in expected.items()
    )


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_torchs_oldest_format_is_what_torch_reads(tmp_path: Path, kind: int) -> None:
    """Several types, a view into another storage, a number, members in any order."""
    write_tar(tmp_path / "f", kind, OLDEST)
    assert same_as_torchs(tmp_path / "f")
    assert open_checkpoint(tmp_path / "f").read()["view"].tolist() == [[5, 8], [6, 9]]


def test_sizes_that_the_header_has_no_room_for(tmp_path: Path) -> None:
    write_tar(tmp_path / "pax", tarfile.PAX_FORMAT, OLDEST, size="{}", mtime="1.5", comment="x")
    assert same_as_torchs(tmp_path / "pax")
    write_tar(tmp_path / "gnu", tarfile.GNU_FORMAT, OLDEST)
    data = bytearray((tmp_path / "gnu").read_bytes())
    start = next(i for i in range(0, len(data), 512) if data[i : i + 9] == b"storages\0")
    size = int(data[start + 124 : start + 135], 8)
    data[start + 124 : start + 136] = b"\x80" + size.to_bytes(11, "big")
    data[start + 148 : start + 156] = b" " * 8
    data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    (tmp_path / "gnu").write_bytes(data)
    assert same_as_torchs(tmp_path / "gnu")


def test_an_empty_tensor_has_no_dimensions_or_no_storage(tmp_path: Path) -> None:
    empty = _table(100, 7, torch.FloatTensor, sizes=(), strides=())
    empty += _table(101, None, torch.LongTensor, sizes=(), strides=())
    storages = dumps(1) + _storage(7, torch.FloatStorage, torch.empty(0)) + dumps([])
    members = {"storages": storages, "tensors": dumps(2) + empty, "pickle": _content({"a": b"100", "b": b"101"})}
    write_tar(tmp_path / "f", tarfile.PAX_FORMAT, members)
    read = open_checkpoint(tmp_path / "f").read()
    found = [(tensor.dtype, tuple(tensor.shape)) for tensor in read.values()]
    assert found == [(torch.float32, (0,)), (torch.int64, (0,))]


@pytest.mark.usefixtures("limits")
def test_damaged_tar_files(tmp_path: Path) -> None:
    lies: dict[str, Callable[[bytes], bytes]] = {
        "checksum": lambda data: data.replace(b"pickle\0", b"pickel\0", 1),
        "size": lambda data: data,
        "view": lambda data: data.replace(VIEWS, dumps([(9, 7, 4, 60)])),
        "key": lambda data: data.replace(VIEWS, dumps([(9, 6, 4, 6)])),
        "views": lambda data: data.replace(VIEWS, dumps(5)),
    }
    for name, lie in lies.items():
        size = "9" * 18 if name == "size" else "{}"
        write_tar(tmp_path / name, tarfile.PAX_FORMAT, OLDEST, size=size)
        (tmp_path / name).write_bytes(lie((tmp_path / name).read_bytes()))
        with pytest.raises(WeightsError):
            open_checkpoint(tmp_path / name)
