"""The oldest format of torch, which no torch of today can write."""

import io
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def write_legacy_tar(state: dict[str, Tensor], path: Path, kind: int = tarfile.PAX_FORMAT) -> None:
    """Members storages, tensors and pickle, as torch 0.1.9 wrote them."""
    storages, tensors, content = io.BytesIO(), io.BytesIO(), io.BytesIO()
    numbers = {id(tensor): 1000 + i for i, tensor in enumerate(state.values())}
    pickle.dump(len(state), storages, 2)
    pickle.dump(len(state), tensors, 2)
    for i, tensor in enumerate(state.values()):
        pickle.dump((i, "cpu", torch.FloatStorage), storages, 2)
        storages.write(struct.pack("<q", tensor.numel()) + tensor.contiguous().numpy().tobytes())
        pickle.dump((numbers[id(tensor)], i, torch.FloatTensor), tensors, 2)
        dimensions = tensor.dim()
        tensors.write(struct.pack("<ii", dimensions, 0))
        tensors.write(struct.pack(f"<{2 * dimensions + 1}q", *tensor.shape, *tensor.contiguous().stride(), 0))
    pickle.dump([], storages, 2)

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> str | None:
            return str(numbers[id(value)]) if isinstance(value, Tensor) else None

    Pickler(content, 2).dump(state)
    with tarfile.open(path, "w:", format=kind) as archive:
        for name, data in (("storages", storages), ("tensors", tensors), ("pickle", content)):
            member = tarfile.TarInfo(name)
            member.size = len(data.getvalue())
            data.seek(0)
            archive.addfile(member, data)
