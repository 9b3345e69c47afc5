"""The command line of export: what it prints, its JSON, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from lit_transfer import load_predictor
from lit_transfer.export import export


def test_beside_the_checkpoint_and_what_is_printed(run, own_checkpoint: Path) -> None:
    shutil.copy(own_checkpoint, "best.ckpt")
    code, out, err = run("export", "best.ckpt", "--to", "safetensors")
    assert (code, err) == (0, "")
    said = " ".join(out.split())
    assert "file best.safetensors (2.9 MB)" in said
    assert "takes images: float32 (N, 3, 32, 32), RGB, divided by 255 and normalised" in said
    assert "gives answers: float32 (N, 3), probabilities of ant, bee, wasp" in said
    assert "the same answer for 10 of 10, largest difference" in said
    assert load_predictor("best.safetensors").class_names == ["ant", "bee", "wasp"]


def test_a_file_made_by_export_answers_and_is_inspected_like_a_checkpoint(run, own_checkpoint: Path, photos) -> None:
    assert run("export", own_checkpoint, "--to", "safetensors", "-o", ".")[0] == 0
    name = f"{own_checkpoint.stem}.safetensors"
    assert run("predict", name, photos / "val")[1] == run("predict", own_checkpoint, photos / "val")[1]
    assert "ant, bee, wasp" in run("inspect", name)[1]


def test_onnx_as_json(run, own_checkpoint: Path, photos: Path) -> None:
    code, out, err = run("export", own_checkpoint, "--to", "onnx", "-o", "n.onnx", "--images", photos / "val", "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert (told["path"], told["to"], told["images"], told["same"]) == ("n.onnx", "onnx", 8, 8)
    assert told["difference"] < 1e-5
    assert told["bytes"] == Path("n.onnx").stat().st_size


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["best.ckpt"], ["--to"]),
        (["best.ckpt", "--to", "onix"], ["onix", "Nearest: onnx"]),
        (["gone.ckpt", "--to", "onnx"], ["No checkpoint at 'gone.ckpt'"]),
        (["foreign.pth", "--to", "onnx"], ["foreign.pth is no checkpoint of a TransferModule"]),
        (["best.ckpt", "--to", "onnx", "-o", "there.onnx"], ["there.onnx is there already", "--force"]),
        (["best.ckpt", "--to", "onnx", "-o", "net.pth"], ["writes .onnx", "net.pth"]),
        (["best.ckpt", "--to", "onnx", "-o", "nowhere/net.onnx"], ["no folder nowhere"]),
        (["best.ckpt", "--to", "safetensors", "--images", "nowhere"], ["No image and no folder at 'nowhere'"]),
        (["best.ckpt", "--to", "safetensors", "--imges", "photos"], ["--imges", "Nearest: --images"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_file(run, own_checkpoint: Path, words: list[str], told: list[str]) -> None:
    shutil.copy(own_checkpoint, "best.ckpt")
    Path("there.onnx").write_text("precious")
    torch.save({"weight": torch.ones(2)}, "foreign.pth")
    before = {path.name: path.read_bytes() for path in Path().iterdir()}
    code, out, err = run("export", *words)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert all(word in err for word in told), err
    assert {path.name: path.read_bytes() for path in Path().iterdir()} == before


def test_the_formats_are_those_of_the_function(run) -> None:
    from lit_transfer.export._export import TO

    assert all(name in run("export", "--help")[1] for name in TO)
    with pytest.raises(ValueError, match="safetensors, torchvision"):
        export("best.ckpt", to="none")  # type: ignore[arg-type]
