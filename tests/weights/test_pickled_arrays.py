"""Pickles of arrays: detectron2's, Detectron's of Python 2, pycls'; large arrays stay in the file."""

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile_files import Payload, refuses_or_is_empty
from python2 import dumps
from small_network import equal, values
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet
from zoo_resnets import detectron2_names

from lit_transfer.weights import WeightsError, describe, load_weights, open_checkpoint


def small_resnet() -> nn.Module:
    model: nn.Module = ResNet(Bottleneck, [1, 1, 1, 1], num_classes=3, width_per_group=8)
    return model


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(4)
    model = small_resnet()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_()
    return model


def detectron2(model: nn.Module, prefix: str = "") -> dict[str, np.ndarray[Any, Any]]:
    return {prefix + name: tensor.numpy() for name, tensor in detectron2_names(model.state_dict()).items()}


def caffe2(model: nn.Module) -> dict[str, np.ndarray[Any, Any]]:
    """Names of Caffe2's blobs, as detectron2's c2_model_loading.py reads them."""
    made = {}
    for name, array in detectron2(model).items():
        blob = name.replace("linear.", "fc1000.").replace("stem.conv1.norm.", "res_conv1_bn_").replace("stem.", "")
        for i, letter in enumerate("abc", 1):
            blob = re.sub(rf"(res\d\.\d+)\.conv{i}\.", rf"\1.branch2{letter}.", blob)
        blob = blob.replace("shortcut", "branch1").replace(".norm.", "_bn_")
        ends = {"bn_weight": "bn_s", "bn_bias": "bn_b", "bn_running_mean": "bn_rm", "bn_running_var": "bn_riv"}
        for end, short in {**ends, "weight": "w", "bias": "b"}.items():
            blob = re.sub(f"{end}$", short, blob)
        made[blob.replace(".", "_")] = array
    return made


def without_counters(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in values(model).items() if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_detectron2(tmp_path: Path, network: nn.Module, protocol: int) -> None:
    arrays = detectron2(network, "backbone.bottom_up.")
    arrays["roi_heads.box_predictor.cls_score.weight"] = np.zeros((5, 7), np.float32)
    content = {"model": arrays, "__author__": "Detectron2 Model Zoo", "matching_heuristics": True}
    (tmp_path / "model_final_280758.pkl").write_bytes(pickle.dumps(content, protocol))
    model = small_resnet()
    report = load_weights(model, tmp_path / "model_final_280758.pkl")
    assert equal(without_counters(model), without_counters(network))
    assert (report.format, report.key, report.prefix) == ("pickle", "model", "backbone.bottom_up")
    assert "detectron2 ResNet to torchvision" in report.edit


def test_blobs_of_caffe2_written_by_python_2(tmp_path: Path, network: nn.Module) -> None:
    blobs = caffe2(network)
    assert {"conv1_w", "res_conv1_bn_s", "res2_0_branch1_bn_riv", "res5_0_branch2c_w", "fc1000_b"} <= blobs.keys()
    blobs["fc1000_w_momentum"] = np.zeros((3, 2048), np.float32)
    (tmp_path / "R-50.pkl").write_bytes(dumps({"blobs": blobs}))
    model = small_resnet()
    load_weights(model, tmp_path / "R-50.pkl")
    assert equal(without_counters(model), without_counters(network))
    assert "res2.0.conv1.norm.weight" in open_checkpoint(tmp_path / "R-50.pkl").state_dict()


def test_large_arrays_stay_in_the_file(tmp_path: Path) -> None:
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "weight": np.arange(40_000, dtype=np.float32).reshape(200, 200),
        "columns": np.asfortranarray(np.arange(60_000, dtype=np.int16).reshape(20, 30, 100)),
        "big": np.arange(40_000).astype(">f8"),
        "small": np.ones(3, np.float16),
    }
    for protocol in (3, 4, 5):
        path = tmp_path / "f.pkl"
        path.write_bytes(pickle.dumps({"model": arrays, "note": b"x" * 70_000}, protocol))
        checkpoint = open_checkpoint(path)
        kinds = [type(tensor).__name__ for tensor in checkpoint.state_dict().values()]
        assert kinds == ["FileTensor"] * 3 + ["ArrayTensor"]
        read = checkpoint.read()
        assert all(np.array_equal(read[name].numpy(), array) for name, array in arrays.items())


def test_a_pickle_larger_than_a_pickle_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_transfer.weights import _inert

    monkeypatch.setattr(_inert, "MAX_PICKLE_BYTES", 100_000)
    array = np.ones((300, 300), np.float32)
    (tmp_path / "f.pkl").write_bytes(pickle.dumps({"a": array, "b": 2 * array}))
    assert open_checkpoint(tmp_path / "f.pkl").read()["b"].sum() == 2 * 300 * 300


def test_pycls(tmp_path: Path) -> None:
    source = small_resnet()
    state = {"epoch": 99, "test_err": 23.2, "model_state": source.state_dict(), "optimizer_state": {}, "cfg": "OUT: ."}
    torch.save(state, tmp_path / "model.pyth")
    model = small_resnet()
    assert load_weights(model, tmp_path).key == "model_state"
    assert equal(values(model), values(source))


def test_what_is_in_it_is_told(tmp_path: Path) -> None:
    arrays = {f"w{i}": np.ones((2, i)) for i in range(20)}
    content = {"model": arrays, "__author__": "a", "matching_heuristics": True}
    (tmp_path / "f.pkl").write_bytes(pickle.dumps(content))
    told = describe(open_checkpoint(tmp_path / "f.pkl"))
    assert (told["format"], told["contents"]["__author__"]) == ("pickle", "a")
    assert told["contents"]["model"] == "20 tensors, w0 2x0 ... w19 2x19"
    assert told["would_import"] == []


def test_nothing_in_it_runs(tmp_path: Path) -> None:
    content = {"model": {"weight": np.ones((2, 2), np.float32)}, "evil": Payload(tmp_path / "ran")}
    (tmp_path / "f.pkl").write_bytes(pickle.dumps(content))
    checkpoint = open_checkpoint(tmp_path / "f.pkl")
    assert list(checkpoint.read()) == ["weight"]
    assert any("touch" in name for name in checkpoint.foreign_globals)
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("limits")
def test_hostile_pickles(tmp_path: Path) -> None:
    good = pickle.dumps({"weight": np.ones((2, 2), np.float32), "x": np.ones(20_000)}, 3)
    length = good.index((160_000).to_bytes(4, "little"))
    for count in (159_999, 160_001, 2**31, 2**32 - 1):
        (tmp_path / "f").write_bytes(good[:length] + count.to_bytes(4, "little") + good[length + 4 :])
        refuses_or_is_empty(tmp_path / "f")
    for end in [*range(2, 300, 3), len(good) // 2, len(good) - 1]:
        (tmp_path / "f").write_bytes(good[:end])
        refuses_or_is_empty(tmp_path / "f")
    for wrong, words in (
        (good + good, "after its end"),
        (pickle.dumps({"a": torch.ones(2)}), "pickled by pickle.dump"),
        (pickle.dumps({"a": 1}), "without arrays under names"),
        (b"\x80\x02X\x01\0\0\0aQ.", "refers to something outside"),
        (b"(dp0\n.", "oldest protocols"),
    ):
        (tmp_path / "f").write_bytes(wrong)
        with pytest.raises(WeightsError, match=words):
            open_checkpoint(tmp_path / "f")
