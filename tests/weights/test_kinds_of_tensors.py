"""What is in a file beside plain tensors: numpy arrays are read, quantised and sparse ones told by name."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lit_transfer.weights import WeightsError, describe, load_weights, open_checkpoint, save_weights


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_dictionary_of_arrays_is_a_state_dict(tmp_path: Path, protocol: int, legacy: bool) -> None:
    arrays: dict[str, Any] = {
        "f2": np.arange(3, dtype=np.float16),
        "column-major": np.asfortranarray(np.arange(6.0, dtype=np.float32).reshape(2, 3)),
        "big-endian": np.arange(4, dtype=">f8"),
        "sliced": np.arange(10, dtype=np.int16)[::3],
        "scalar": np.array(7, dtype=np.int64),
        "empty": np.zeros((0, 4), dtype=np.uint8),
        "bool": np.array([True, False]),
        "complex": np.array([1 + 2j], dtype=np.complex64),
    }
    path = tmp_path / "f"
    torch.save({"net": arrays}, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    read = open_checkpoint(path).read("net")
    assert list(read) == list(arrays)
    for name, array in arrays.items():
        assert np.array_equal(read[name].numpy(), array)
        assert read[name].numpy().dtype == array.dtype.newbyteorder("=")
    read["f2"].zero_()  # what was read is the reader's own
    assert open_checkpoint(path).read("net")["f2"].tolist() == [0, 1, 2]


def test_arrays_fill_a_model_from_a_file_and_from_memory(tmp_path: Path) -> None:
    source = nn.Linear(3, 2)
    arrays = {name: tensor.numpy() for name, tensor in source.state_dict().items()}
    torch.save({"model": arrays, "names": np.array(["a", "b"]), "things": np.array([{}, None])}, tmp_path / "f")
    np.savez(tmp_path / "f.npz", **arrays)
    for given in (tmp_path / "f", arrays, {"model": dict(np.load(tmp_path / "f.npz"))}):
        model = nn.Linear(3, 2)
        load_weights(model, given)
        assert torch.equal(model.weight, source.weight)
    assert describe(open_checkpoint(tmp_path / "f"))["state_dicts"][0]["tensors"] == 2
    save_weights(open_checkpoint(tmp_path / "f").state_dict(), tmp_path / "f.safetensors")
    assert open_checkpoint(tmp_path / "f.safetensors").read()["weight"].equal(source.weight)


def test_one_array_under_two_names_is_stored_once(tmp_path: Path) -> None:
    array = np.random.default_rng(0).random(10_000)
    torch.save({"a": array, "b": array}, tmp_path / "f")
    for given in (open_checkpoint(tmp_path / "f"), open_checkpoint({"a": array, "b": array})):
        path = save_weights(given.state_dict(), tmp_path / "out.pth")
        assert array.nbytes < path.stat().st_size < 1.2 * array.nbytes


def test_a_numpy_scalar_has_the_byte_order_that_it_was_written_in(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1), "little": np.float32(1.5), "big": np.array([1.5], ">f4")[0]}, tmp_path / "f")
    root = open_checkpoint(tmp_path / "f").root
    assert (root["little"], root["big"]) == (1.5, 1.5)


def quantised() -> Tensor:
    with warnings.catch_warnings():  # torch means to move them to another library
        warnings.simplefilter("ignore")
        return torch.quantize_per_channel(torch.rand(2, 3), torch.ones(2), torch.zeros(2), 0, torch.qint8)


def sparse(layout: str) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "Sparse CSR tensor support is in beta state"
        return torch.eye(2, 3).to_sparse() if layout == "coo" else torch.eye(2, 3).to_sparse_csr()


UNREAD: dict[str, tuple[Callable[[], Tensor], str]] = {
    "quantised": (quantised, r"quantised.*tensor\.dequantize\(\)"),
    "coo": (lambda: sparse("coo"), r"sparse tensor \(torch\.sparse_coo\).*tensor\.to_dense\(\)"),
    "csr": (lambda: sparse("csr"), r"sparse tensor \(torch\.sparse_csr\)"),
    "meta": (lambda: torch.empty(2, 3, device="meta"), "saved from the meta device"),
}


@pytest.mark.parametrize("kind", UNREAD)
def test_what_is_not_read_is_told_under_its_name(tmp_path: Path, kind: str) -> None:
    make, words = UNREAD[kind]
    torch.save({"state_dict": {"weight": make(), "bias": torch.ones(2)}}, tmp_path / "f")
    model = nn.Linear(3, 2)
    before = model.weight.clone()
    with pytest.raises(WeightsError, match=rf"weight \(it (is|was).*{words}|weight \(it {words}"):
        load_weights(model, tmp_path / "f")
    assert torch.equal(model.weight, before)
    assert load_weights(model, tmp_path / "f", exclude=["weight"]).loaded == ("bias",)
    assert torch.equal(model.bias, torch.ones(2))
    with pytest.raises(WeightsError, match=r"^weight: it"):
        open_checkpoint(tmp_path / "f").read()
    with pytest.raises(WeightsError, match=r"^weight: it"):
        save_weights(open_checkpoint(tmp_path / "f").state_dict(), tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize("kind", ["quantised", "coo", "csr"])
def test_what_cannot_be_copied_from_memory_is_told_too(kind: str) -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(WeightsError, match=r"weight \(it is (quantised|a sparse tensor)"):
        load_weights(model, {"weight": UNREAD[kind][0](), "bias": torch.ones(2)})


def test_a_nested_tensor_beside_the_weights_is_no_obstacle(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "The PyTorch API of nested tensors is in prototype stage"
        nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    torch.save({"state_dict": nn.Linear(3, 2).state_dict(), "lengths": {"all": nested}}, tmp_path / "f")
    assert load_weights(nn.Linear(3, 2), tmp_path / "f").coverage == 1


def flipped(path: Path, values: Tensor, out: Path) -> Path:
    """A copy of the file with one byte of a tensor changed."""
    data = bytearray(path.read_bytes())
    data[data.index(values.numpy().tobytes()) + 5] ^= 4
    out.write_bytes(data)
    return out


def test_a_byte_that_changed_on_the_disk_is_told_and_nothing_is_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, model = nn.Linear(40, 30), nn.Linear(40, 30)
    torch.save({"state_dict": source.state_dict()}, tmp_path / "good")
    path = flipped(tmp_path / "good", source.weight.detach(), tmp_path / "bad")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for attempt in (lambda: load_weights(model, path), lambda: load_weights(model.to("meta"), path)):
        with pytest.raises(WeightsError, match=r"^weight: .*bad.*checksum.*verify=False"):
            attempt()
    model = model.to_empty(device="cpu")
    model.load_state_dict(before)
    for attempt in (
        lambda: open_checkpoint(path).read(),
        lambda: save_weights(open_checkpoint(path).state_dict(), tmp_path / "out.pth"),
    ):
        with pytest.raises(WeightsError, match=r"^weight: .*checksum"):
            attempt()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    load_weights(model, open_checkpoint(path, verify=False))
    assert (model.weight != source.weight).sum() == 1
    load_weights(model, path, exclude=["weight"])  # what is not read is not looked at


def test_a_small_part_of_a_storage_is_read_without_the_rest(tmp_path: Path) -> None:
    whole = torch.arange(10_000.0)
    torch.save({"part": whole[:10], "most": whole[:9_000]}, tmp_path / "good")
    path = flipped(tmp_path / "good", whole[9_500:9_600], tmp_path / "bad")
    tensors = open_checkpoint(path).state_dict()
    assert torch.equal(tensors["part"].read(), whole[:10])
    with pytest.raises(WeightsError, match="checksum"):
        tensors["most"].read()


def test_files_without_checksums_are_read(tmp_path: Path) -> None:
    source, model = nn.Linear(4, 3), nn.Linear(4, 3)
    computed = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(source.state_dict(), tmp_path / "f")
    finally:
        torch.serialization.set_crc32_options(computed)
    load_weights(model, tmp_path / "f")
    assert torch.equal(model.weight, source.weight)
