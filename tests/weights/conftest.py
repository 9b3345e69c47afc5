"""Fixtures of the tests on weights. Puts this folder on the path: tests share small networks and files."""

import io
import pickle
import resource
import signal
import struct
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

SECONDS = 60  # for each hostile file or group of them; the slowest takes four on an idle machine
EXTRA_BYTES = 2**30  # what opening a file may cost, whatever it holds


def _write_legacy_tar(state: dict[str, Tensor], path: Path, kind: int = tarfile.PAX_FORMAT) -> None:
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


@pytest.fixture
def legacy_tar() -> Callable[..., None]:
    """Writes the oldest format of torch, which no torch of today can write: `legacy_tar(state, path)`."""
    return _write_legacy_tar


@pytest.fixture
def limits() -> Iterator[None]:
    """A limit on the time and on the memory of a test of hostile files."""

    def too_late(*_: Any) -> None:
        pytest.fail(f"took longer than {SECONDS} s")  # no Exception, which the unpickler would turn into its own

    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(SECONDS)
    if Path("/proc/self/statm").exists():
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + EXTRA_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
