"""safetensors and torchvision's state dict, loaded by those who know nothing of the export."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from lit_transfer import load_predictor, load_weights
from lit_transfer.backbones._torchvision import model_options
from lit_transfer.export import ExportError, export
from lit_transfer.modules import TransferModule
from lit_transfer.predictor import Predictor
from lit_transfer.weights import open_checkpoint

LAST: dict[str, Any] = {"class": lambda x: x.softmax(1), "multilabel": torch.sigmoid, "number": lambda x: x}


def test_safetensors_is_built_again_from_nothing_but_the_file(make, pixels: Tensor, task: str, tmp_path: Path) -> None:
    module, path = make(task, "squeezenet1_1", dropout=0.1), tmp_path / "net.safetensors"
    report = export(module, path, to="safetensors")
    assert report.notes == ()
    again = TransferModule.load_from_checkpoint(path).eval()
    assert type(again) is type(module)
    assert again.output_names == module.output_names
    assert again.preprocessing == module.preprocessing
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in module.state_dict().items())
    images = list(pixels)
    assert load_predictor(path, "cpu")(images) == Predictor(module)(images)
    about = open_checkpoint(path).metadata
    assert about["task"] == task
    assert json.loads(about["preprocessing"]) == module.preprocessing.to_dict()
    assert about.get("thresholds") == ("[0.25, 0.75]" if task == "multilabel" else None)


def test_safetensors_fills_a_module_that_is_there(make, tmp_path: Path) -> None:
    module, path = make("class"), tmp_path / "net.safetensors"
    report = export(module, path, to="safetensors")
    assert "given as a module" in report.notes[0]  # nothing tells how to build that one
    other = make("class")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    load_weights(other, path, head=())
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in module.state_dict().items())


def test_torchvisions_own_model_answers_the_same(make, answer, pixels: Tensor, task: str, tmp_path: Path) -> None:
    module = make(task, "shufflenet_v2_x0_5", dropout=0.1)
    report = export(module, tmp_path / "net.pth", to="torchvision")
    assert f"torchvision.models.shufflenet_v2_x0_5(num_classes={module.num_outputs})" in report.notes[0]
    model = torchvision.models.shufflenet_v2_x0_5(num_classes=module.num_outputs).eval()
    model.load_state_dict(torch.load(tmp_path / "net.pth"))
    made = module.preprocessing
    inputs = torchvision.transforms.v2.functional.normalize(pixels / 255, made.mean, made.std)
    with torch.no_grad():
        got = LAST[task](model(inputs))
    torch.testing.assert_close(got, answer(module, pixels), rtol=1e-6, atol=1e-5)
    assert json.loads(open_checkpoint(tmp_path / "net.pth").metadata["preprocessing"]) == made.to_dict()


def test_squeezenets_relu_behind_the_classifier_cuts_nothing(make, answer, pixels: Tensor, tmp_path: Path) -> None:
    module = make("class", "squeezenet1_1")
    with torch.no_grad():
        module.head.bias.sub_(100)  # all logits are below zero, where torchvision's ReLU would leave none
    report = export(module, tmp_path / "net.pt", to="torchvision")
    model = torchvision.models.squeezenet1_1(num_classes=3).eval()
    model.load_state_dict(torch.load(tmp_path / "net.pt"))
    made = module.preprocessing
    inputs = torchvision.transforms.v2.functional.normalize(pixels / 255, made.mean, made.std)
    with torch.no_grad():
        assert (model(inputs).softmax(1) - answer(module, pixels)).abs().max() < 1e-4
    assert "is added to every logit" in report.notes[0]


@pytest.mark.parametrize(
    ("task", "backbone", "options", "told"),
    [
        ("class", None, {}, "the backbone Sequential is not one of torchvision's"),
        ("class", "timm/resnet10t", {}, "the backbone timm/resnet10t is not one of torchvision's"),
        ("class", "squeezenet1_1", {"head": "mlp"}, "ends with one linear layer"),
        ("class", "squeezenet1_1", {"head": nn.Sequential(nn.Linear(512, 3), nn.Tanh())}, "ends with one linear layer"),
        ("class", "squeezenet1_1", {"in_channels": 1}, "takes 3 channels, and this one 1"),
        ("multilabel", "squeezenet1_1", {}, "ends with a ReLU"),
    ],
)
def test_what_torchvision_has_no_model_for_is_refused(
    task: str, backbone: str | None, options: dict[str, Any], told: str, make, tmp_path: Path
) -> None:
    module = make(task, backbone, **options)
    with pytest.raises(ExportError, match=told) as raised:
        export(module, tmp_path / "net.pth", to="torchvision")
    assert "to='onnx', 'torch_export' and 'safetensors' take it" in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_transformers_size_is_part_of_how_torchvision_builds_it() -> None:
    assert model_options("vit_b_32", 3, 64, 2) == {"num_classes": 2, "image_size": 64}
    assert model_options("maxvit_t", 3, 224, 2) == {"num_classes": 2, "input_size": (224, 224)}


@pytest.mark.parametrize("to", ["safetensors", "torchvision"])
def test_a_fitted_temperature_is_in_the_answers(to: Any, make, answer, pixels: Tensor, tmp_path: Path) -> None:
    """Export compares the file with the module: without the temperature it would be refused."""
    module = make("class", "shufflenet_v2_x0_5")
    plain = answer(module, pixels)
    module.temperature.fill_(3)
    assert (answer(module, pixels) - plain).abs().max() > 0.01
    report = export(module, tmp_path / f"net.{'pth' if to == 'torchvision' else to}", to=to)
    assert report.comparison.same == report.comparison.images
    if to == "safetensors":
        assert TransferModule.load_from_checkpoint(report.path).temperature == 3
