"""open_checkpoint: each format, read lazily, and nothing in the file is run."""

import argparse
import collections
import copy
import io
import json
import os
import pathlib
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lit_transfer.weights import WeightsError, load_weights, open_checkpoint


def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    return {
        "half": torch.randn(3, 2).half(),
        "bfloat": torch.randn(5).bfloat16(),
        "double": torch.randn(2, 1, 3).double(),
        "long": torch.tensor(7),
        "bool": torch.tensor([True, False]),
        "complex": torch.randn(2, 2, dtype=torch.complex64),
        "empty": torch.zeros(0, 4),
        "base": base,
        "view": base[1:3],
        "column": base[:, 2],
        "transposed": base.t(),
        "expanded": torch.ones(1).expand(4),
    }


def same(read: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return list(read) == list(expected) and all(
        read[n].dtype == t.dtype and read[n].shape == t.shape and torch.equal(read[n], t) for n, t in expected.items()
    )


@pytest.mark.parametrize("legacy", [False, True])
def test_every_kind_of_tensor(tmp_path: Path, legacy: bool) -> None:
    torch.save(state(), tmp_path / "f", _use_new_zipfile_serialization=not legacy)
    assert same(open_checkpoint(tmp_path / "f").read(), state())


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("legacy", [False, True])
def test_every_pickle_protocol(tmp_path: Path, protocol: int, legacy: bool) -> None:
    path = tmp_path / "f"
    torch.save(state(), path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    assert same(open_checkpoint(path).read(), state())


def test_new_dtypes_of_zip_files(tmp_path: Path) -> None:
    new = {"f8": torch.randn(4).to(torch.float8_e4m3fn), "u16": torch.arange(3).to(torch.uint16)}
    torch.save(new, tmp_path / "f")
    read = open_checkpoint(tmp_path / "f").read()
    assert torch.equal(read["f8"].float(), new["f8"].float())
    assert torch.equal(read["u16"].int(), new["u16"].int())


def test_big_endian_files(tmp_path: Path) -> None:
    values = {"a": torch.arange(6.0).view(2, 3), "c": torch.tensor([1 + 2j])}
    torch.save(values, tmp_path / "little")
    with zipfile.ZipFile(tmp_path / "little") as old, zipfile.ZipFile(tmp_path / "big", "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if "/data/" in name:
                data = np.frombuffer(data, "<f4").astype(">f4").tobytes()
            new.writestr(name, b"big" if name.endswith("byteorder") else data)
    assert same(open_checkpoint(tmp_path / "big").read(), values)
    model = nn.Linear(3, 2)
    load_weights(model, tmp_path / "big", rename={"^a$": "weight"}, exclude=["bias", "c"])
    assert torch.equal(model.weight, values["a"])


def test_big_endian_legacy_files(tmp_path: Path) -> None:
    values = torch.arange(6, dtype=torch.int16)
    torch.save({"a": values}, tmp_path / "f", _use_new_zipfile_serialization=False)
    data = (tmp_path / "f").read_bytes()
    start, end = data.index(b"little_endian"), len(data) - 8 - 12
    flag = data.index(b"\x88", start)  # the opcode for True
    swapped = (6).to_bytes(8, "big") + values.numpy().astype(">i2").tobytes()
    (tmp_path / "f").write_bytes(data[:flag] + b"\x89" + data[flag + 1 : end] + swapped)
    assert torch.equal(open_checkpoint(tmp_path / "f").read()["a"], values)


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_legacy_tar(tmp_path: Path, legacy_tar: Callable[..., None], kind: int) -> None:
    floats = collections.OrderedDict(a=torch.randn(3, 4), b=torch.randn(5), c=torch.randn(()))
    legacy_tar(floats, tmp_path / "f", kind)
    checkpoint = open_checkpoint(tmp_path / "f")
    assert checkpoint.format == "legacy torch tar"
    assert same(checkpoint.read(), floats)


def test_safetensors_with_metadata(tmp_path: Path) -> None:
    plain = {
        name: tensor.contiguous() for name, tensor in state().items() if name in ("half", "bfloat", "long", "bool")
    }
    save_file(plain, tmp_path / "f", {"classes": "ants"})
    assert {n: v.tolist() for n, v in open_checkpoint(tmp_path / "f").read().items()} == {
        n: v.tolist() for n, v in plain.items()
    }
    assert open_checkpoint(tmp_path / "f").root.attributes == {"classes": "ants"}


class _Evil:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("evil",))


def test_nothing_is_run_and_nothing_is_an_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = {
        "state_dict": nn.Linear(3, 2).state_dict(),
        "args": argparse.Namespace(lr=0.1, path=pathlib.PurePosixPath("/x")),
        "best": np.float64(0.5),
        "count": np.int32(-3),
        "array": np.zeros(3),
        "history": collections.defaultdict(list, {"loss": [1.0]}),
        "counter": collections.Counter("aab"),
        "evil": _Evil(),
        "kind": torch.float32,
        "device": torch.device("cpu"),
        "optimizer": torch.optim.AdamW,
        "tags": {"a", "b"},
        "frozen": frozenset({1}),
    }
    for legacy in (False, True):
        torch.save(content, tmp_path / "f", _use_new_zipfile_serialization=not legacy)
        checkpoint = open_checkpoint(tmp_path / "f")
        assert checkpoint.root["best"] == 0.5
        assert checkpoint.root["count"] == -3
        assert any(name.endswith(".mkdir") for name in checkpoint.foreign_globals)
        assert load_weights(nn.Linear(3, 2), tmp_path / "f").key == "state_dict"
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    "lost",
    [
        "omegaconf.dictconfig.DictConfig",
        "mmengine.logging.history_buffer.HistoryBuffer",
        "torch._thnn.utils.THNNCudaBackendStateMixin",
        "numpy.core.multiarray._ufunc_reconstruct",
        "__main__.LeNet2",
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_code_that_is_gone_is_no_obstacle(tmp_path: Path, lost: str, legacy: bool) -> None:
    """An object of a class, and the class itself, which no installed package has."""
    place, name = lost.rpartition(".")[::2]
    source, model = nn.Linear(3, 2), nn.Linear(3, 2)
    kind = type(name, (), {"__module__": place})
    thing = kind()
    thing.__dict__.update(_content={"lr": 0.1}, _history=np.arange(3))
    stored = types.ModuleType(place)
    setattr(stored, name, kind)
    with pytest.MonkeyPatch.context() as patch:
        for depth in range(place.count(".")):
            parent = ".".join(place.split(".")[: depth + 1])
            patch.setitem(sys.modules, parent, sys.modules.get(parent, types.ModuleType(parent)))
        patch.setitem(sys.modules, place, stored)
        torch.save(
            {"cfg": thing, "type": kind, "state_dict": source.state_dict()},
            tmp_path / "f",
            _use_new_zipfile_serialization=not legacy,
        )
    assert load_weights(model, tmp_path / "f").key == "state_dict"
    assert torch.equal(model.weight, source.weight)
    checkpoint = open_checkpoint(tmp_path / "f")
    assert lost in checkpoint.foreign_globals
    assert checkpoint.root["cfg"].attributes["_content"] == {"lr": 0.1}


def lost_network() -> nn.Module:
    """A network whose class cannot be imported when the file is read."""
    module = types.ModuleType("lost_code")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
            self.fc = nn.Linear(4, 2)
            self.register_buffer("kept", torch.ones(2))
            self.register_buffer("transient", torch.ones(2), persistent=False)
            self.register_parameter("none", None)
            self.twin = self.fc

    Net.__module__, Net.__qualname__ = "lost_code", "Net"
    vars(module)["Net"] = Net
    sys.modules["lost_code"] = module
    return Net()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: {"epoch": 1, "model": net}, lambda net: [3, net]])
def test_whole_models_without_their_class(tmp_path: Path, legacy: bool, wrap: Callable[[Any], Any]) -> None:
    net = lost_network()
    with pytest.MonkeyPatch.context() as patch:
        if legacy:  # torch would store the class' source with it, which a lost class has not
            patch.setattr("inspect.getsourcelines", lambda *_: (["lost"], 1))
            patch.setattr("inspect.getsourcefile", lambda *_: "lost")
        torch.save(wrap(net), tmp_path / "f", _use_new_zipfile_serialization=not legacy)
    del sys.modules["lost_code"]
    (found,) = open_checkpoint(tmp_path / "f").state_dicts
    assert found.kind == "module"
    assert same({name: tensor.read() for name, tensor in found.items()}, net.state_dict())


def test_data_parallel_whole_model_loads_into_a_plain_one(tmp_path: Path) -> None:
    source, model = nn.Linear(3, 2), nn.Linear(3, 2)
    torch.save({"ema": nn.DataParallel(source), "model": None}, tmp_path / "f")
    assert load_weights(model, tmp_path / "f").prefix == "module"
    assert torch.equal(model.weight, source.weight)


def test_torchscript_archives(tmp_path: Path) -> None:
    source = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    with pytest.warns(FutureWarning, match="deprecated"):
        torch.jit.save(torch.jit.trace(source.eval(), torch.ones(2, 3)), tmp_path / "f")
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    load_weights(model, tmp_path / "f")
    assert torch.equal(model[0].weight, source[0].weight)


def test_traced_graphs(tmp_path: Path) -> None:
    source = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    torch.save(torch.fx.symbolic_trace(source), tmp_path / "f")
    model = copy.deepcopy(source)
    assert load_weights(model, tmp_path / "f").coverage == 1


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards(tmp_path: Path, suffix: str) -> None:
    source, model = nn.Linear(3, 2), nn.Linear(3, 2)
    write = save_file if suffix == "safetensors" else torch.save
    files = {name: f"model-{i}.{suffix}" for i, name in enumerate(source.state_dict())}
    for name, file in files.items():
        write({name: source.state_dict()[name]}, tmp_path / file)
    index = tmp_path / f"model.{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    report = load_weights(model, tmp_path)
    assert "2 shards" in report.format
    assert torch.equal(model.weight, source.weight)
    (tmp_path / files["bias"]).unlink()
    with pytest.raises(WeightsError, match="not beside it"):
        open_checkpoint(index)
    for outside in ("../x", "/etc/passwd", "a/b", "..", "c:\\x", ""):
        index.write_text(json.dumps({"weight_map": {"weight": outside}}))
        with pytest.raises(WeightsError, match="only files beside the index"):
            open_checkpoint(index)


@pytest.mark.parametrize("legacy", [False, True])
def test_only_the_needed_bytes_are_read(tmp_path: Path, legacy: bool) -> None:
    model = nn.Linear(10, 10)
    content = {"state_dict": model.state_dict(), "optimizer": {"m": torch.zeros(3_000_000)}}
    torch.save(content, tmp_path / "f", _use_new_zipfile_serialization=not legacy)
    before = _bytes_read()
    load_weights(model, tmp_path / "f")
    assert _bytes_read() - before < 200_000


def _bytes_read() -> int:
    path = Path("/proc/self/io")
    if not path.exists():
        pytest.skip("needs /proc/self/io to count")
    return int(path.read_text().split("rchar: ")[1].split("\n")[0])


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_what_happens_to_the_file_later_leaves_the_model_alone(tmp_path: Path, kind: str) -> None:
    source, model = nn.Linear(300, 300), nn.Linear(300, 300)
    path = tmp_path / "f"
    if kind == "safetensors":
        save_file(source.state_dict(), path)
    else:
        torch.save(source.state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    load_weights(model, path)
    read = open_checkpoint(path).read()
    with path.open("r+b") as stream:  # in place: a mapping of it would see the bytes
        stream.write(b"\xff" * path.stat().st_size)
    os.truncate(path, 0)
    assert torch.equal(model.weight, source.weight)
    assert torch.equal(read["weight"], source.weight)


def test_a_tag_of_another_machine_is_no_obstacle(tmp_path: Path) -> None:
    for tag in ("cuda:3", "mps", "unheard_of:7"):
        buffer = io.BytesIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.serialization, "location_tag", lambda _, tag=tag: tag)
            torch.save({"weight": torch.ones(2)}, buffer)
        (tmp_path / "f").write_bytes(buffer.getvalue())
        checkpoint = open_checkpoint(tmp_path / "f")
        assert checkpoint.state_dict()["weight"].location == tag
        assert checkpoint.read()["weight"].device.type == "cpu"


def test_map_location_in_its_four_forms(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "f")
    checkpoint = open_checkpoint(tmp_path / "f")
    seen = []

    def on_meta(storage: torch.UntypedStorage, location: str) -> torch.UntypedStorage:
        seen.append((storage.nbytes(), location))
        return torch.UntypedStorage(storage.nbytes(), device="meta")

    assert checkpoint.read(map_location="meta")["weight"].is_meta
    assert checkpoint.read(map_location=torch.device("meta"))["weight"].is_meta
    assert checkpoint.read(map_location={"cpu": "meta"})["weight"].is_meta
    assert not checkpoint.read(map_location={"cuda:0": "meta"})["weight"].is_meta
    assert checkpoint.read(map_location=on_meta)["weight"].is_meta
    assert seen == [(8, "cpu")]
    assert torch.equal(checkpoint.read(map_location=lambda storage, _: storage)["weight"], torch.ones(2))
    assert torch.equal(checkpoint.read(map_location=lambda *_: None)["weight"], torch.ones(2))
    with pytest.raises(TypeError, match="must return a storage"):
        checkpoint.read(map_location=lambda *_: 3)
