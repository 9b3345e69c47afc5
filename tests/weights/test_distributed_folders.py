"""Folders of torch.distributed.checkpoint: read alone and where it is wanted, compared with what torch reads."""

import io
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hostile_files import Payload
from small_network import equal, network, values
from torch import Tensor, nn
from torch.distributed.checkpoint import metadata as records
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lit_transfer.weights import WeightsError, describe, load_weights, open_checkpoint

Pieces = list[tuple[tuple[int, ...], Tensor]]  # offset and values of each


def write(folder: Path, tensors: dict[str, Pieces], shapes: dict[str, tuple[int, ...]], **lies: Any) -> None:
    """A folder as several processes write it: piece i of each tensor in file i, records of torch's own classes."""
    folder.mkdir(exist_ok=True)
    items: dict[str, Any] = {}
    storage = {}
    streams: dict[int, io.BytesIO] = {}
    for name, pieces in tensors.items():
        chunks = [records.ChunkStorageMetadata(torch.Size(at), piece.shape) for at, piece in pieces]
        kind = records.TensorProperties(dtype=pieces[0][1].dtype)
        items[name] = records.TensorStorageMetadata(kind, torch.Size(shapes[name]), chunks)
        for i, (at, piece) in enumerate(pieces):
            stream = streams.setdefault(i, io.BytesIO())
            start = stream.tell()
            torch.save(piece.clone(), stream)
            place = _StorageInfo(f"__{i}_0.distcp", start, stream.tell() - start)
            storage[records.MetadataIndex(name, at)] = place
    for i, stream in streams.items():
        (folder / f"__{i}_0.distcp").write_bytes(stream.getvalue())
    told = records.Metadata(items, {name: tuple(name.split(".", 1)) for name in items}, storage)
    for name, lie in lies.items():
        setattr(told, name, lie(getattr(told, name)))
    (folder / ".metadata").write_bytes(pickle.dumps(told))


def rows(tensor: Tensor, parts: int = 2) -> Pieces:
    at, pieces = 0, []
    for piece in tensor.chunk(parts) if tensor.dim() else (tensor,):
        pieces.append(((at, *(0 for _ in tensor.shape[1:])) if tensor.dim() else (), piece))
        at += piece.shape[0] if tensor.dim() else 0
    return pieces


def write_rows(folder: Path, state: dict[str, Tensor], **lies: Any) -> None:
    named = {f"state_dict.{name}": tensor for name, tensor in state.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in named.items()}
    write(folder, {name: rows(tensor) for name, tensor in named.items()}, shapes, **lies)


def torchs(folder: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What torch's own reader makes of it."""
    found = {"state_dict": {name: torch.zeros_like(tensor) for name, tensor in state.items()}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state_dict_loader.load(found, checkpoint_id=folder, no_dist=True)
    return found["state_dict"]


def test_pieces_in_several_files_are_what_torch_reads(tmp_path: Path) -> None:
    state = values(network())
    write_rows(tmp_path / "f", state)
    model = network()
    report = load_weights(model, tmp_path / "f")
    assert (report.key, report.coverage, report.format) == ("state_dict", 1.0, "distributed checkpoint of 2 files")
    assert equal(values(model), torchs(tmp_path / "f", state))
    assert load_weights(network(5), tmp_path / "f").head == ("fc",)


def test_lightnings_folder_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "epoch=1.ckpt"
    write_rows(folder, values(network()))
    shards = sum(file.stat().st_size for file in folder.iterdir())
    torch.save({"epoch": 3, "global_step": 70, "hyper_parameters": {"lr": 0.1}}, folder / "meta.pt")
    told = describe(open_checkpoint(folder))
    assert (told["epoch"], told["global_step"], told["bytes"]) == (3, 70, shards)
    assert [(found["key"], found["tensors"]) for found in told["state_dicts"]] == [
        ("state_dict", len(values(network())))
    ]


def test_boxes_in_any_order_and_layout(tmp_path: Path) -> None:
    whole = torch.randn(6, 4, 3, 3)
    boxes: Pieces = [((a, b, 0, 0), whole[a : a + 3, b : b + 2]) for a in (3, 0) for b in (0, 2)]
    boxes[0] = (boxes[0][0], boxes[0][1].contiguous(memory_format=torch.channels_last))
    write(tmp_path / "f", {"state_dict.w": boxes}, {"state_dict.w": (6, 4, 3, 3)})
    assert torch.equal(open_checkpoint(tmp_path / "f").read()["w"], whole)


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def sharded() -> nn.Module:
    model = network()
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    return model


def saved_by_torch(content: dict[str, Any], folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state_dict_saver.save(content, checkpoint_id=folder)


def test_what_torch_wrote_of_a_sharded_model(tmp_path: Path, one_process: None) -> None:
    expected = values(network())
    source = sharded()
    optimizer = {"state": {"fc.weight": {"exp_avg": torch.ones(4, 12)}}, "param_groups": [{"lr": 0.1, "params": ["a"]}]}
    saved_by_torch({"model": source.state_dict(), "optimizer_0": optimizer}, tmp_path / "f")
    model = network()
    assert load_weights(model, tmp_path / "f").key == "model"
    assert equal(values(model), expected)
    saved_by_torch(source.state_dict(), tmp_path / "bare")
    load_weights(sharded(), tmp_path / "bare")


def test_a_sharded_model_is_filled_with_its_part(tmp_path: Path, one_process: None) -> None:
    state = values(network())
    write_rows(tmp_path / "f", state)
    model = sharded()
    load_weights(model, tmp_path / "f")
    full = {name: t.full_tensor() if hasattr(t, "full_tensor") else t for name, t in model.state_dict().items()}
    assert equal(full, state)


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the system does not count the bytes that are read")
def test_only_what_is_wanted_is_read(tmp_path: Path) -> None:
    big, small = nn.Linear(2000, 2000), nn.Linear(500, 400)
    write_rows(tmp_path / "f", {**small.state_dict(prefix="small."), **big.state_dict(prefix="big.")})
    part = nn.Linear(500, 400)
    model = nn.ModuleDict({"small": part})

    def read() -> int:
        before = int(Path("/proc/self/io").read_text().split()[1])
        load_weights(model, tmp_path / "f", include=["small"])
        return int(Path("/proc/self/io").read_text().split()[1]) - before

    read()  # imports
    assert read() <= 1.05 * 4 * (500 * 400 + 400)
    assert torch.equal(part.weight, small.weight)


def test_a_shard_that_is_not_there_matters_only_where_it_is_wanted(tmp_path: Path) -> None:
    state = {"a.weight": torch.ones(4, 2), "b.weight": torch.ones(6, 2)}
    pieces = {"state_dict.a.weight": rows(state["a.weight"], 1), "state_dict.b.weight": rows(state["b.weight"], 2)}
    write(tmp_path / "f", pieces, {"state_dict.a.weight": (4, 2), "state_dict.b.weight": (6, 2)})
    (tmp_path / "f/__1_0.distcp").unlink()
    a, b = nn.ModuleDict({"a": nn.Linear(2, 4, bias=False)}), nn.ModuleDict({"b": nn.Linear(2, 6, bias=False)})
    load_weights(a, tmp_path / "f")
    with pytest.raises(WeightsError, match=r"__1_0\.distcp is not in .*copy all files of the folder"):
        load_weights(b, tmp_path / "f")
    assert "copy all files" in describe(open_checkpoint(tmp_path / "f"))["state_dicts"][0]["unread"]["b.weight"]


def test_nothing_in_it_runs(tmp_path: Path) -> None:
    write_rows(tmp_path / "f", {"weight": torch.ones(2, 2)}, storage_meta=lambda _: Payload(tmp_path / "ran"))
    assert open_checkpoint(tmp_path / "f").read()["weight"].sum() == 4
    (tmp_path / "f/.metadata").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    with pytest.raises(WeightsError, match=r"is no record of shards; it names .*pathlib"):
        open_checkpoint(tmp_path / "f")
    assert not (tmp_path / "ran").exists()


def test_a_part_is_no_checkpoint(tmp_path: Path) -> None:
    write_rows(tmp_path / "f", {"weight": torch.ones(2, 2)})
    for name in ("__0_0.distcp", ".metadata"):
        with pytest.raises(WeightsError, match=f"part of a distributed checkpoint: give its folder, {tmp_path / 'f'}$"):
            open_checkpoint(tmp_path / "f" / name)


def _places(change: Callable[[_StorageInfo], _StorageInfo]) -> Callable[[Any], Any]:
    return lambda storage: {index: change(place) for index, place in storage.items()}


def _box(offsets: tuple[int, ...], sizes: tuple[int, ...]) -> Callable[[Any], Any]:
    """The second piece lies there, if one believes the records."""

    def lie(items: Any) -> Any:
        items["state_dict.weight"].chunks[1] = records.ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
        return items

    return lie


LIES: dict[str, dict[str, Callable[[Any], Any]]] = {
    "path": {"storage_data": _places(lambda place: _StorageInfo("../x", place.offset, place.length))},
    "beyond": {"storage_data": _places(lambda place: _StorageInfo(place.relative_path, 2**60, place.length))},
    "negative": {"storage_data": _places(lambda place: _StorageInfo(place.relative_path, -1, place.length))},
    "shifted": {"storage_data": _places(lambda p: _StorageInfo(p.relative_path, p.offset + 7, p.length - 7))},
    "length": {"storage_data": _places(lambda place: _StorageInfo(place.relative_path, place.offset, 9))},
    "extension": {
        "storage_data": _places(lambda p: _StorageInfo(p.relative_path, p.offset, p.length, ["stream.zstd"]))
    },
    "no places": {"storage_data": lambda _: None},
    "other places": {"storage_data": lambda _: {}},
    "overlap": {"state_dict_metadata": _box((0, 0), (2, 3))},
    "outside": {"state_dict_metadata": _box((3, 0), (2, 3))},
    "huge": {"state_dict_metadata": _box((2, 0), (2**50, 3))},
    "dimensions": {"state_dict_metadata": _box((2,), (2,))},
    "inside": {"planner_data": lambda paths: {**paths, "state_dict.bias": ("state_dict", "weight", "x")}},
    "deep": {"planner_data": lambda paths: dict.fromkeys(paths, ("a",) * 1000)},
    "strange": {"planner_data": lambda paths: dict.fromkeys(paths, 5)},
}


@pytest.mark.usefixtures("limits")
@pytest.mark.parametrize("name", LIES)
def test_records_that_lie(tmp_path: Path, name: str) -> None:
    write_rows(tmp_path / "f", {"weight": torch.ones(4, 3), "bias": torch.ones(4)}, **LIES[name])
    model = nn.Linear(3, 4)
    before = model.weight.clone()
    with pytest.raises(WeightsError):
        load_weights(model, tmp_path / "f")
    assert torch.equal(model.weight, before)


@pytest.mark.usefixtures("limits")
def test_damaged_folders(tmp_path: Path) -> None:
    state = {"weight": torch.ones(4, 3), "bias": torch.ones(4)}
    model = nn.Linear(3, 4)
    before = model.weight.clone()
    for name in (".metadata", "__1_0.distcp"):
        write_rows(tmp_path / "f", state)
        data = (tmp_path / "f" / name).read_bytes()
        for end in range(0, len(data) - 1, 97):
            (tmp_path / "f" / name).write_bytes(data[:end])
            with pytest.raises(WeightsError):
                load_weights(model, tmp_path / "f")
    write_rows(tmp_path / "f", state)
    flipped = bytearray((tmp_path / "f/__0_0.distcp").read_bytes())
    flipped[flipped.index(torch.ones(6).numpy().tobytes()) + 5] ^= 1
    (tmp_path / "f/__0_0.distcp").write_bytes(flipped)
    with pytest.raises(WeightsError, match=r"weight: .*checksum"):
        load_weights(model, tmp_path / "f")
    assert torch.equal(model.weight, before)
    assert open_checkpoint(tmp_path / "f", verify=False).read()["weight"].shape == (4, 3)
