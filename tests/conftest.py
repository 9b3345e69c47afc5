"""Fixtures that more than one test file uses."""

import inspect
import os
import sys
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported, here and in the processes that tests start: several tests run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def loaders_as_torch_has_them() -> Iterator[None]:
    """Undo what Lightning 2.6 leaves behind when a data hook raises: DataLoader stays patched for good.

    `lightning.fabric.utilities.data._replace_dunder_methods` has no `finally`; a loader that a later test makes would
    be made again from what the patch noted, and fail with a positional batch size.
    """
    yield
    if "lightning.fabric.utilities.data" not in sys.modules:
        return
    from torch.utils.data import BatchSampler, DataLoader

    known = [DataLoader, BatchSampler]
    for cls in known:
        known += cls.__subclasses__()
        for name in ("__init__", "__setattr__", "__delattr__"):
            if f"__old{name}" in vars(cls):
                setattr(cls, name, inspect.unwrap(getattr(cls, name)))
                delattr(cls, f"__old{name}")


@pytest.fixture(autouse=True)
def processes_as_they_were() -> Iterator[None]:
    """Undo what Lightning leaves behind when a test fits with DDP or FSDP in this very process.

    The process group lives until the interpreter ends, and its port stays in the environment: processes that a later
    test starts would inherit the port and find it taken.
    """
    names = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "RANK", "WORLD_SIZE")
    before = {name: os.environ.get(name) for name in names}
    yield
    if "torch.distributed" in sys.modules:
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of real photos, weights and checkpoints by strangers; the test is skipped where it is absent."""
    beside = Path(__file__).parents[2] / "shared" / "real"
    path = Path(os.environ.get("LIT_TRANSFER_REAL", beside))
    if not path.is_dir():
        pytest.skip("needs real files: set LIT_TRANSFER_REAL to their folder")
    return path


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small photos of two kinds, `train/` and `val/`: noise over red and over blue."""
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for name, channel in (("blue", 2), ("red", 0)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 100, (40, 48, 3), dtype=np.uint8)
                pixels[..., channel] += 150
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root
