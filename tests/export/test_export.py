"""What holds for every format: compared before it is there, whole or absent, the module as it was."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lit_transfer import WeightsError
from lit_transfer.export import ExportError, ExportReport, _export, export
from lit_transfer.export._job import Job, Run
from lit_transfer.modules import ImageClassifier


def spoil(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Let what is read from a safetensors file answer otherwise."""
    form = _export._FORMATS["safetensors"]

    def reopen(job: Job, path: Path) -> Run:
        run = form.reopen(job, path)
        return lambda pixels: change(run(pixels))

    monkeypatch.setitem(_export._FORMATS, "safetensors", form._replace(reopen=reopen))


def nothing(answers: Tensor) -> Tensor:
    return answers * float("nan")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda answers: answers + 2e-4, "an answer differs by 0.0002, and 1e-04 is allowed"),
        (lambda answers: answers.flip(1), "an answer differs by"),
        (lambda answers: answers[:, :1], "has the shape"),
        (nothing, "differs by nan"),
    ],
)
def test_a_file_that_answers_otherwise_is_refused_and_removed(
    change: Any, told: str, make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.safetensors").write_text("precious")
    spoil(monkeypatch, change)
    with pytest.raises(ExportError, match=told):
        export(make("class"), tmp_path / "net.safetensors", to="safetensors", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]
    assert (tmp_path / "net.safetensors").read_text() == "precious"


def test_numbers_are_judged_in_their_own_unit(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make("number", target_mean=[4e6, 1.7], target_std=[9e5, 0.1])
    spoil(monkeypatch, lambda answers: answers + torch.tensor([50.0, 0]))  # of 900,000: rounding
    report = export(module, tmp_path / "net.safetensors", to="safetensors")
    assert 5e-5 < report.comparison.difference < 6e-5
    spoil(monkeypatch, lambda answers: answers + torch.tensor([0, 5e-5]))  # of 0.1: not rounding
    with pytest.raises(ExportError, match=r"differs by 0\.0005"):
        export(module, tmp_path / "other.safetensors", to="safetensors")


def test_changed_decisions_are_counted(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make("class")
    torch.nn.init.zeros_(module.head.weight)
    torch.nn.init.zeros_(module.head.bias)  # three classes alike
    spoil(monkeypatch, lambda answers: answers + torch.tensor([0, 0, 5e-5]))
    comparison = export(module, tmp_path / "net.safetensors", to="safetensors").comparison
    assert (comparison.same, comparison.images) == (0, 10)
    assert "the same answer for 0 of 10" in str(comparison)


def test_the_module_stays_as_it_is(make, tmp_path: Path) -> None:
    module = make("class").train()
    module.head.requires_grad_(False)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    export(module, tmp_path / "net.pt2", to="torch_export")
    assert module.training
    assert module.backbone.training
    assert [name for name, parameter in module.named_parameters() if not parameter.requires_grad] == [
        "head.weight",
        "head.bias",
    ]
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_are_written_as_float32_and_told(dtype: torch.dtype, make, tmp_path: Path) -> None:
    module = make("class", "squeezenet1_1").to(dtype)
    report = export(module, tmp_path / "net.safetensors", to="safetensors")
    assert report.notes == (f"weights of {str(dtype)[6:]} are written, and compared, as float32",)
    assert next(module.parameters()).dtype is dtype
    again = ImageClassifier.load_from_checkpoint(tmp_path / "net.safetensors")
    assert torch.equal(again.head.weight, module.head.weight.float())


def test_grey_images_and_five_channels(make, tmp_path: Path) -> None:
    for channels in (1, 4, 5):
        module = make("class", "squeezenet1_1", in_channels=channels)
        report = export(module, tmp_path / f"{channels}.safetensors", to="safetensors")
        assert f"(N, {channels}, 32, 32)" in report.takes


# --- on which images ---------------------------------------------------------------------------------------------


def photos(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        pixels = generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def report_of(module: ImageClassifier, folder: Path, **options: Any) -> ExportReport:
    return export(module, folder / "net.safetensors", to="safetensors", force=True, **options)


def test_all_of_the_given_images(make, tmp_path: Path) -> None:
    folder = photos(tmp_path / "mine", 19)
    report = report_of(make("class"), tmp_path, images=folder)
    assert report.comparison.images == 19
    assert report.source == f"19 images of {folder}"
    assert report_of(make("class"), tmp_path, images=[folder / "3.png"]).comparison.images == 1
    with pytest.raises(FileNotFoundError, match="nowhere"):
        report_of(make("class"), tmp_path, images="nowhere")
    with pytest.raises(ValueError, match="empty list"):
        report_of(make("class"), tmp_path, images=[])
    (folder / "4.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken image .*4\.png"):
        report_of(make("class"), tmp_path, images=folder)


def checkpoint_of(module: ImageClassifier, path: Path) -> Path:
    """A checkpoint as Lightning writes it, as far as the weights go."""
    content = {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "pytorch-lightning_version": "2.6.6",
    }
    module.on_save_checkpoint(content)
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ("data: {{class_path: x, init_args: {{root: {root}}}}}", True),
        ("data: {{class_path: x, init_args: {{root: null, table: {root}/table.csv}}}}", True),
        ("data: {{class_path: x, init_args: {{root: gone}}}}", False),
        ("data: [1, 2]", False),
        ("data: {{class_path", False),
    ],
)
def test_the_data_of_the_run_where_it_still_lies_there(config: str, found: bool, make, tmp_path: Path) -> None:
    root = photos(tmp_path / "data" / "val" / "bees", 40).parents[1]
    run = tmp_path / "runs" / "version_0"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text(config.format(root=root))
    checkpoint = checkpoint_of(make("class", "squeezenet1_1"), run / "checkpoints" / "best.ckpt")
    report = export(checkpoint, to="safetensors")
    assert report.path == checkpoint.with_suffix(".safetensors")
    told = f"14 of the 40 images in {root / 'val'}, the data of the run"
    assert report.source == (
        told if found else "10 images cut from scikit-learn's two photos; --images FOLDER takes yours"
    )


# --- bad input ---------------------------------------------------------------------------------------------------


def test_bad_input_is_said_before_any_work(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make("class")
    monkeypatch.setattr(_export, "private_copy", None)  # would fail
    (tmp_path / "there.onnx").write_text("precious")
    torch.save({"weight": torch.ones(2)}, tmp_path / "foreign.ckpt")
    bad: list[tuple[Any, Any, dict[str, Any], type[Exception], str]] = [
        (module, "a.onnx", {"to": "onix"}, ValueError, "to='onix' is unknown.* Did you mean 'onnx'"),
        (module, "a.pth", {}, ValueError, r"to='onnx' writes \.onnx, got 'a\.pth'"),
        (module, None, {}, ValueError, r"give a path, such as model\.onnx"),
        (module, tmp_path / "there.onnx", {}, FileExistsError, "there already: force=True"),
        (module, tmp_path / "no" / "a.onnx", {}, FileNotFoundError, "there is no folder"),
        (tmp_path / "gone.ckpt", None, {}, FileNotFoundError, "No checkpoint at"),
        (tmp_path / "foreign.ckpt", None, {}, WeightsError, "no checkpoint of a TransferModule"),
        (tmp_path / "foreign.ckpt", tmp_path / "foreign.ckpt", {"to": "torchvision"}, ValueError, "writes .pth or .pt"),
    ]
    for source, path, options, kind, told in bad:
        with pytest.raises(kind, match=told):
            export(source, path, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["foreign.ckpt", "there.onnx"]


def test_the_checkpoint_itself_is_never_replaced(make, tmp_path: Path) -> None:
    export(make("class", "squeezenet1_1"), tmp_path / "net.safetensors", to="safetensors")
    with pytest.raises(ValueError, match="is the checkpoint itself"):
        export(tmp_path / "net.safetensors", to="safetensors", force=True)
    two = export(tmp_path / "net.safetensors", tmp_path / "two.safetensors", to="safetensors")
    assert two.comparison.difference < 1e-5


def test_a_missing_extra_is_named(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if "onnx" in name else there(name, *rest))
    with pytest.raises(ImportError, match=r"needs onnx, onnxscript, onnxruntime: pip install 'lit-transfer\[export\]'"):
        export(make("class"), tmp_path / "net.onnx")


def test_a_folder_that_cannot_be_written_to(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, **_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)  # root may write anywhere
    with pytest.raises(OSError, match=r"net\.safetensors cannot be written: Permission denied"):
        export(make("class"), tmp_path / "net.safetensors", to="safetensors")


def test_a_disk_that_is_full_leaves_nothing(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        export(make("class"), tmp_path / "net.pt2", to="torch_export")
    assert list(tmp_path.iterdir()) == []


def test_a_module_without_a_head_has_no_answer(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no head yet"):
        export(ImageClassifier("squeezenet1_1", weights=None), tmp_path / "net.pt2", to="torch_export")


def test_what_is_printed(make, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    report = export(make("class"), tmp_path / "net.pt2", to="torch_export")
    assert capfd.readouterr() == ("", "")
    text = str(report)
    assert all(
        part in text
        for part in (
            "net.pt2 (0.",
            "uint8 (N, 3, 32, 32), RGB from 0 to 255",
            "probabilities of ants, bees, wasps",
            "torch.export.load of torch",
            "the same answer for 10 of 10, largest difference",
        )
    )
    values = report.to_dict()
    assert (values["images"], values["same"]) == (10, 10)
    assert values["path"] == str(tmp_path / "net.pt2")
