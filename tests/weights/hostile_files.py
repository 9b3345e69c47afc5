"""Files made by hand to harm, and what must become of them."""

import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lit_transfer.weights import WeightsError, load_weights


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def u64(number: int) -> bytes:
    return struct.pack("<Q", number)


MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)


def zipped(path: Path, data: bytes, **storages: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        for key, raw in {"0": b"\0" * 16, **storages}.items():
            archive.writestr(f"archive/data/{key}", raw)
    return path


def legacy(path: Path, data: bytes) -> Path:
    path.write_bytes(MAGIC + data + pickle.dumps(["0"], 2) + u64(4) + b"\0" * 16)
    return path


def ran_out_of_memory(error: BaseException | None) -> bool:
    """Whether the limit on memory is what stopped it: the reader itself has to refuse first."""
    while error is not None and not isinstance(error, MemoryError):
        error = error.__cause__ or error.__context__
    return error is not None


def refuses_or_is_empty(path: Path) -> None:
    """The file is refused; or it opens, holds nothing that fits, and the model stays as it was."""
    model = nn.Linear(2, 2)
    before = model.weight.clone()
    with pytest.raises(WeightsError) as caught:
        load_weights(model, path)
    assert not ran_out_of_memory(caught.value)
    assert torch.equal(model.weight, before)
