"""Numpy's archives: read in place; JAX's ViT as Google released it, compared with timm's own reader."""

import io
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile_files import Payload, refuses_or_is_empty
from timm.models.vision_transformer import VisionTransformer, _load_weights
from torchvision.models import VisionTransformer as TorchvisionTransformer

from lit_transfer.weights import WeightsError, describe, load_weights, open_checkpoint

SIZES: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
Arrays = dict[str, np.ndarray[Any, Any]]


def vit(**more: Any) -> VisionTransformer:
    torch.manual_seed(1)
    model = VisionTransformer(**{**SIZES, **more})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model.eval()


def google(model: VisionTransformer, *, big_vision: bool = False, scanned: bool = False) -> Arrays:
    """The arrays of a release of Google's vision_transformer, or of big_vision, from a model of timm.

    Source: `_load_weights` in timm/models/vision_transformer.py, read backwards.
    """
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    heads, width = SIZES["num_heads"], SIZES["embed_dim"]
    attention, mlp, norm = (0, 0, 1) if big_vision else (1, 3, 2)
    made = {
        "cls": state["cls_token"],
        ("" if big_vision else "Transformer/posembed_input/") + "pos_embedding": state["pos_embed"],
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for i in range(SIZES["depth"]):
        block, place = f"blocks.{i}.", f"Transformer/encoderblock_{i}/"
        for theirs, ours in ((0, 1), (norm, 2)):
            made[f"{place}LayerNorm_{theirs}/scale"] = state[f"{block}norm{ours}.weight"]
            made[f"{place}LayerNorm_{theirs}/bias"] = state[f"{block}norm{ours}.bias"]
        for j, part in enumerate(("query", "key", "value")):
            rows = slice(j * width, (j + 1) * width)
            into = f"{place}MultiHeadDotProductAttention_{attention}/{part}/"
            made[f"{into}kernel"] = state[f"{block}attn.qkv.weight"][rows].T.reshape(width, heads, -1)
            made[f"{into}bias"] = state[f"{block}attn.qkv.bias"][rows].reshape(heads, -1)
        out = f"{place}MultiHeadDotProductAttention_{attention}/out/"
        made[f"{out}kernel"] = state[f"{block}attn.proj.weight"].T.reshape(heads, -1, width)
        made[f"{out}bias"] = state[f"{block}attn.proj.bias"]
        for j in (0, 1):
            made[f"{place}MlpBlock_{mlp}/Dense_{j}/kernel"] = state[f"{block}mlp.fc{j + 1}.weight"].T
            made[f"{place}MlpBlock_{mlp}/Dense_{j}/bias"] = state[f"{block}mlp.fc{j + 1}.bias"]
    return stacked(made) if scanned else made


def stacked(arrays: Arrays) -> Arrays:
    """The blocks as big_vision's scan has them: one array for all, a first axis for the blocks."""
    inside = sorted(name for name in arrays if "encoderblock_0/" in name)
    made = {name: array for name, array in arrays.items() if "encoderblock_" not in name}
    for name in inside:
        layers = [arrays[name.replace("_0/", f"_{i}/", 1)] for i in range(SIZES["depth"])]
        made[name.replace("encoderblock_0/", "encoderblock/")] = np.stack(layers)
    return made


def save(path: Path, arrays: Any, packed: bool = False) -> None:
    (np.savez_compressed if packed else np.savez)(path, **arrays)


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("prefix", "big_vision", "scanned"),
    [("", False, False), ("opt/target/", False, False), ("params/", True, False), ("params/img/", True, True)],
)
def test_googles_vit_is_what_timm_reads(
    tmp_path: Path, prefix: str, big_vision: bool, scanned: bool, packed: bool
) -> None:
    arrays = google(vit(), big_vision=big_vision, scanned=scanned)
    save(tmp_path / "vit.npz", {prefix + name: array for name, array in arrays.items()}, packed)
    expected, model = VisionTransformer(**SIZES), VisionTransformer(**SIZES)
    _load_weights(expected, str(tmp_path / "vit.npz"))
    report = load_weights(model, tmp_path / "vit.npz")
    assert same(model, expected)
    assert (report.coverage, report.format, report.prefix) == (
        1.0,
        "numpy archive",
        prefix.strip("/").replace("/", "."),
    )
    assert "JAX ViT to timm" in report.edit


def test_googles_vit_in_torchvision(tmp_path: Path) -> None:
    source = vit()
    save(tmp_path / "vit.npz", google(source))
    model = TorchvisionTransformer(32, 8, 2, 3, 24, 96, num_classes=5).eval()
    report = load_weights(model, tmp_path / "vit.npz")
    assert "JAX ViT to torchvision" in report.edit
    images = torch.randn(2, 3, 32, 32)
    assert torch.allclose(model(images), source(images), atol=1e-4)


def test_another_size_and_another_head(tmp_path: Path) -> None:
    save(tmp_path / "vit.npz", google(vit()))
    model = VisionTransformer(**{**SIZES, "img_size": 48, "num_classes": 7})
    report = load_weights(model, tmp_path / "vit.npz")
    assert report.head == ("head",)
    assert "pos_embed" in report.adapted


def test_the_arrays_in_memory_are_as_good(tmp_path: Path) -> None:
    source, model = vit(), VisionTransformer(**SIZES)
    load_weights(model, google(source))
    assert same(model, source)


def test_half_precision_of_jax(tmp_path: Path) -> None:
    values = torch.randn(3, 4).bfloat16()
    np.savez(tmp_path / "f.npz", weight=values.view(torch.int16).numpy().view("V2"))
    assert torch.equal(open_checkpoint(tmp_path / "f.npz").read()["weight"], values)


@pytest.mark.parametrize("packed", [False, True])
def test_each_kind_of_array(tmp_path: Path, packed: bool) -> None:
    arrays: Arrays = {
        "plain": np.arange(6, dtype=np.float32).reshape(2, 3),
        "columns": np.asfortranarray(np.arange(24, dtype=np.int16).reshape(2, 3, 4)),
        "big": np.arange(4).astype(">f8"),
        "complex": np.array([1 + 2j], dtype=">c8"),
        "scalar": np.float32(3),
        "empty": np.zeros((0, 3), np.float16),
        "flags": np.array([True, False]),
    }
    save(tmp_path / "f", arrays, packed)
    read = open_checkpoint(tmp_path / "f.npz").read()
    assert list(read) == list(arrays)
    assert all(np.array_equal(read[name].numpy(), array) for name, array in arrays.items())


def test_only_what_is_wanted_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "f", weight=np.ones((2, 2), np.float32), bias=np.ones(2, np.float32), other=np.ones(10**6))
    with zipfile.ZipFile(tmp_path / "f.npz") as archive:
        start = archive.getinfo("other.npy").header_offset + 1000
    data = bytearray((tmp_path / "f.npz").read_bytes())
    data[start] ^= 1
    (tmp_path / "f.npz").write_bytes(data)
    model = torch.nn.Linear(2, 2)
    load_weights(model, tmp_path / "f.npz", exclude=["other"])
    assert model.weight.sum() == 4
    with pytest.raises(WeightsError, match=r"other: .*checksum"):
        open_checkpoint(tmp_path / "f.npz").read()
    assert open_checkpoint(tmp_path / "f.npz", verify=False).read()["other"].shape == (10**6,)


def test_arrays_of_objects_are_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "f", weight=np.ones(2), objects=np.array([Payload(tmp_path / "ran")]), text=np.array(["a"]))
    checkpoint = open_checkpoint(tmp_path / "f.npz")
    assert list(checkpoint.state_dict()) == ["weight"]
    assert describe(checkpoint)["contents"]["objects"] == "object an array of |O"
    assert not (tmp_path / "ran").exists()


def test_what_is_in_it_is_told(tmp_path: Path) -> None:
    save(tmp_path / "vit.npz", google(vit()))
    told = describe(open_checkpoint(tmp_path / "vit.npz"))
    assert told["format"] == "numpy archive"
    assert [entry["looks_like"] for entry in told["state_dicts"]] == ["a ViT (JAX)"]
    assert told["state_dicts"][0]["parameters"] == sum(p.numel() for p in vit().parameters())


def npy(header: bytes, data: bytes = b"\0" * 16) -> bytes:
    return b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header + data


GOOD = b"{'descr': '<f4', 'fortran_order': False, 'shape': (4,), }\n"
HOSTILE = {
    "magic": npy(GOOD).replace(b"NUMPY", b"NUMPX"),
    "short": npy(GOOD, b"\0" * 8),
    "long": npy(GOOD, b"\0" * 32),
    "huge": npy(GOOD.replace(b"4,", b"4611686018427387904,")),
    "overflow": npy(GOOD.replace(b"4,", b"4294967296, 4294967296, 4294967296, 0,")),
    "negative": npy(GOOD.replace(b"4,", b"-4,")),
    "digits": npy(GOOD.replace(b"4,", b"9" * 9000)),
    "many": npy(GOOD.replace(b"4,", b"1, " * 3000)),
    "deep": npy(b"(" * 9999),
    "code": npy(b"__import__('os').system('true')"),
    "no header": b"\x93NUMPY\x01\0\xff\xff",
    "version": b"\x93NUMPY\x03\0" + (2**31).to_bytes(4, "little") + GOOD,
    "nothing": b"",
}


@pytest.mark.usefixtures("limits")
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_arrays(tmp_path: Path, name: str, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "f.npz", "w", method) as archive:
        archive.writestr("weight.npy", HOSTILE[name])
    refuses_or_is_empty(tmp_path / "f.npz")


@pytest.mark.usefixtures("limits")
def test_hostile_archives(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, weight=np.ones((2, 2), np.float32), bias=np.ones(3, np.float32))
    data = buffer.getvalue()
    for length in range(4, len(data), 3):
        (tmp_path / "f").write_bytes(data[:length])
        refuses_or_is_empty(tmp_path / "f")
    for flipped in range(0, len(data), 2):
        (tmp_path / "f").write_bytes(data[:flipped] + bytes([data[flipped] ^ 0x55]) + data[flipped + 1 :])
        refuses_or_is_empty(tmp_path / "f")


@pytest.mark.usefixtures("limits")
def test_a_bomb_and_a_stranger_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        zeros = npy(GOOD.replace(b"4,", b"20971520,"), bytes(4 * 20 * 2**20))
        archive.writestr("weight.npy", zeros)
    with pytest.raises(WeightsError, match=r"declares 83,886,\d+: damaged, or a zip bomb"):
        open_checkpoint(tmp_path / "bomb.npz")
    with zipfile.ZipFile(tmp_path / "mixed", "w") as archive:
        archive.writestr("weight.npy", npy(GOOD))
        archive.writestr("data.pkl", pickle.dumps({}))
    with pytest.raises(WeightsError, match=re.escape("a zip file of arrays and of 'data.pkl'")):
        open_checkpoint(tmp_path / "mixed")
