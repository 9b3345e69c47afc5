"""ONNX and torch.export, opened by nothing but their own runtimes."""

import json
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from lit_transfer.export import ExportError, export
from lit_transfer.modules import TransferModule

NAMES = {"class": "class_names", "multilabel": "label_names", "number": "target_names"}


def check_about(about: dict[str, Any], module: TransferModule, task: str) -> None:
    assert about["task"] == task
    assert about[NAMES[task]] == module.output_names
    assert about["preprocessing"] == module.preprocessing.to_dict()
    assert about.get("thresholds") == ([0.25, 0.75] if task == "multilabel" else None)
    assert about["input"] == "images: uint8 (N, 3, 32, 32), RGB from 0 to 255"
    assert about["output"].startswith(f"answers: float32 (N, {module.num_outputs})")


def parsed(text: str) -> Any:
    return json.loads(text) if text[0] in "[{" else text


def test_onnx(make, answer, pixels: Tensor, task: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    module = make(task)
    report = export(module, tmp_path / "net.onnx")
    assert capfd.readouterr() == ("", "")  # the exporter talks a lot
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    for number in (1, 3, 5):
        (got,) = session.run(["answers"], {"images": pixels[:number].numpy()})
        torch.testing.assert_close(torch.from_numpy(got), answer(module, pixels[:number]), rtol=1e-6, atol=1e-5)
    assert session.get_inputs()[0].shape == ["batch", 3, 32, 32]
    about = session.get_modelmeta().custom_metadata_map
    check_about({name: parsed(text) for name, text in about.items()}, module, task)
    with pytest.raises(Exception, match="tensor\\(float\\)"):  # normalised twice is impossible
        session.run(None, {"images": pixels.float().numpy()})
    assert report.runtime.startswith("onnxruntime ")
    assert report.bytes == (tmp_path / "net.onnx").stat().st_size


def test_torch_export(make, answer, pixels: Tensor, task: str, tmp_path: Path) -> None:
    module = make(task)
    report = export(module, tmp_path / "net.pt2", to="torch_export")
    extra = {"lit_transfer.json": ""}
    graph = torch.export.load(tmp_path / "net.pt2", extra_files=extra).module()
    for number in (1, 3, 5):
        got = graph(pixels[:number])
        torch.testing.assert_close(got, answer(module, pixels[:number]), rtol=1e-6, atol=1e-5)
    check_about(json.loads(extra["lit_transfer.json"]), module, task)
    assert report.comparison.images == 10
    assert report.comparison.same == (None if task == "number" else 10)
    assert report.comparison.difference < 1e-5


class Learning(TransferModule):
    """A task of one's own, as far as it must be defined."""

    def configure_loss(self) -> nn.Module:
        return nn.MSELoss()


class Doubling(Learning):
    """Gives twice what its head gives."""

    def predict_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        return 2 * super().predict_step(batch, batch_idx)


class Naming(Learning):
    """Gives no tensor."""

    def predict_step(self, batch: Any, batch_idx: int = 0) -> Any:
        return {"answer": super().predict_step(batch, batch_idx)}


class Branching(Learning):
    """Looks at its numbers to choose a way, which no trace can follow."""

    def predict_step(self, batch: Any, batch_idx: int = 0) -> Any:
        answer = super().predict_step(batch, batch_idx)
        return answer if answer.sum() > 0 else -answer


def test_a_module_of_ones_own_gives_what_its_predict_step_gives(make, answer, pixels: Tensor, tmp_path: Path) -> None:
    module = Doubling(make("class").backbone, num_outputs=4, weights=None, input_size=32).eval()
    torch.nn.init.normal_(module.head.weight)
    report = export(module, tmp_path / "own.pt2", to="torch_export")
    extra = {"lit_transfer.json": ""}
    graph = torch.export.load(tmp_path / "own.pt2", extra_files=extra).module()
    torch.testing.assert_close(graph(pixels), answer(module, pixels))
    assert json.loads(extra["lit_transfer.json"])["task"] == "other"
    assert report.comparison.same is None


@pytest.mark.parametrize(
    ("kind", "told"),
    [(Naming, "predict_step gives a dict, where a file gives one tensor"), (Branching, "torch.export cannot follow")],
)
def test_what_no_graph_can_hold_is_said(kind: type[TransferModule], told: str, make, tmp_path: Path) -> None:
    module = kind(make("class").backbone, num_outputs=4, weights=None, input_size=32)
    with pytest.raises(ExportError, match=told):
        export(module, tmp_path / "own.pt2", to="torch_export")
    assert list(tmp_path.iterdir()) == []


def test_a_head_that_pools_and_a_fitted_temperature_are_in_the_graph(
    make, answer, pixels: Tensor, tmp_path: Path
) -> None:
    module = make("class", "shufflenet_v2_x0_5", head="attention")
    module.temperature.fill_(3)
    export(module, tmp_path / "net.pt2", to="torch_export")
    run = torch.export.load(tmp_path / "net.pt2").module()
    torch.testing.assert_close(run(pixels), answer(module, pixels), rtol=1e-5, atol=1e-5)
