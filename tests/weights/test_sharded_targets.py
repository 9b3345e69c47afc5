"""Sharded models: each process reads its own part of the file and no more, from each format that allows it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from test_distributed_folders import write_rows
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from lit_transfer.weights import load_weights

SIZE = (1001, 600)  # rows that two processes cannot share alike


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """A fake process group of two, as the second sees it: whatever were sent would not arrive."""
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    yield init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


def sharded(mesh: DeviceMesh, placement: Any, device: str = "cpu") -> nn.Module:
    with torch.device(device):
        model = nn.Linear(SIZE[1], SIZE[0], bias=False)
    model.weight = nn.Parameter(distribute_tensor(model.weight.detach(), mesh, [placement], src_data_rank=None))
    return model


def write(kind: str, path: Path, weight: Tensor) -> None:
    if kind == "folder":
        write_rows(path, {"weight": weight})
    elif kind == "safetensors":
        save_file({"weight": weight}, path)
    else:
        torch.save({"weight": weight}, path, _use_new_zipfile_serialization=kind == "zip")


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("placement", [Shard(0), Shard(1), Replicate()])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "folder"])
def test_each_process_gets_its_part(tmp_path: Path, mesh: DeviceMesh, kind: str, placement: Any, device: str) -> None:
    whole = torch.randn(SIZE)
    write(kind, tmp_path / "f", whole)
    model = sharded(mesh, placement, device)
    load_weights(model, tmp_path / "f")
    local = model.get_parameter("weight").to_local()  # type: ignore[operator]  # a DTensor
    parts = [whole, whole] if placement == Replicate() else whole.chunk(2, placement.dim)
    assert torch.equal(local, parts[mesh.get_rank()])
    assert local.untyped_storage().nbytes() == local.nbytes


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the system does not count the bytes that are read")
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "folder"])
def test_a_node_reads_the_file_once(tmp_path: Path, mesh: DeviceMesh, kind: str) -> None:
    write(kind, tmp_path / "f", torch.randn(SIZE))
    model = sharded(mesh, Shard(0))

    def read() -> int:
        before = int(Path("/proc/self/io").read_text().split()[1])
        load_weights(model, tmp_path / "f")
        return int(Path("/proc/self/io").read_text().split()[1]) - before

    read()  # imports
    own = model.get_parameter("weight").to_local().nbytes  # type: ignore[operator]  # a DTensor
    assert own <= read() <= 1.05 * own


def test_a_process_without_rows_gets_none(tmp_path: Path, mesh: DeviceMesh) -> None:
    torch.save({"weight": torch.ones(1, 3)}, tmp_path / "f")
    model = nn.Linear(3, 1, bias=False)
    model.weight = nn.Parameter(distribute_tensor(model.weight.detach(), mesh, [Shard(0)], src_data_rank=None))
    assert load_weights(model, tmp_path / "f").coverage == 1
    assert model.weight.to_local().shape == (0, 3)
