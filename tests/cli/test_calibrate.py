"""`calibrate` fits on the validation images, writes a checkpoint that is otherwise the same, and tells what it did."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_transfer.modules import ImageRegressor

SMALL = ("--data.image_size=32", "--trainer.accelerator=cpu", "--data.num_workers=0")


@pytest.fixture
def unsure(photos: Path, tmp_path: Path) -> Path:
    """A checkpoint of a classifier that is right more often than not, and much too sure of it."""
    from lightning.pytorch import Trainer

    from lit_transfer.modules import ImageClassifier

    torch.manual_seed(0)
    module = ImageClassifier("squeezenet1_1", weights=None, class_names=["blue", "red"], input_size=32)
    with torch.no_grad():
        module.head.weight.normal_(std=30.0)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "best.ckpt")
    return tmp_path / "best.ckpt"


def wrong_for_some(root: Path, photos: Path) -> Path:
    """The photos, with one of each class under the other's name, so that no classifier is always right."""
    for name, other in (("red", "blue"), ("blue", "red")):
        for number, path in enumerate(sorted((photos / "val" / name).iterdir())):
            place = root / "val" / (other if number == 0 else name)
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{name}{number}.png").write_bytes(path.read_bytes())
    (root / "train").symlink_to(photos / "train")
    return root


def test_a_calibrated_checkpoint_beside_the_other_one(
    run: Any, photos: Path, unsure: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = wrong_for_some(tmp_path / "photos", photos)
    # What random weights answer is no matter of the test: logits that are right but too large are.
    images = {name: 6.0 if name == "red" else -6.0 for name in ("red", "blue")}
    monkeypatch.setattr(
        "lit_transfer.modules.ImageClassifier.forward",
        lambda self, x: torch.stack([x[:, 2].mean((1, 2)), x[:, 0].mean((1, 2))], 1) * images["red"],
    )
    code, out, err = run("calibrate", unsure, f"--data.root={root}", *SMALL, "--plot", "r.png")
    assert code == 0, err
    lines = out.splitlines()
    assert re.match(r"temperature \d+\.\d+, fitted on 8 validation images, on which it is measured", lines[0])
    assert lines[1].split() == ["NLL", "ECE", "accuracy"]
    before, after = ([float(x) for x in line.split()[-3:]] for line in lines[3:5])
    assert after[0] < before[0]
    assert after[1] < before[1]
    assert after[2] == before[2] == 0.75
    assert Path("r.png").read_bytes().startswith(b"\x89PNG")
    saved, old = (torch.load(path, weights_only=True) for path in ("best.calibrated.ckpt", "best.ckpt"))
    assert saved["lit_transfer"].pop("temperature") == pytest.approx(float(lines[0].split()[1][:-1]), rel=1e-3)
    assert old["lit_transfer"].pop("temperature") == 1
    assert saved["lit_transfer"] == old["lit_transfer"]
    assert all(torch.equal(value, saved["state_dict"][name]) for name, value in old["state_dict"].items())
    rows = [json.loads(x) for x in run("predict", "best.calibrated.ckpt", root / "val", "--json")[1].splitlines()]
    shares = [row["probabilities"][Path(row["path"]).parent.name] for row in rows]
    assert -sum(torch.tensor(shares).log().tolist()) / 8 == pytest.approx(after[0], abs=2e-3)
    words = ("calibrate", "best.calibrated.ckpt", f"--data.root={root}", *SMALL, "--json", "-o", "again.ckpt")
    told = json.loads(run(*words)[1])
    assert told["temperature"] == pytest.approx(float(lines[0].split()[1][:-1]), rel=1e-3)
    assert told["before"]["nll"] == pytest.approx(told["after"]["nll"], abs=1e-6)


def test_what_is_wrong_is_one_line(run: Any, photos: Path, unsure: Path, tmp_path: Path) -> None:
    from lightning.pytorch import Trainer

    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(ImageRegressor("squeezenet1_1", None, num_targets=1, target_mean=[0.0], target_std=[1.0]))
    trainer.save_checkpoint(tmp_path / "numbers.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    data = f"--data.root={photos}"
    for words, told in (
        ([data], "calibrate needs a checkpoint"),
        (["nowhere.ckpt", data], "no file at 'nowhere.ckpt'"),
        (["foreign.ckpt", data], "calibrate needs a checkpoint that lit-transfer fit wrote"),
        (["numbers.ckpt", data], "holds a ImageRegressor"),
        ([unsure, data, "--plot", "a.docx"], "type 'docx'"),
        ([unsure, data, "-o", "nowhere/a.ckpt"], "no folder 'nowhere'"),
        ([unsure, data, "--model.num_classes=5"], "num_classes"),
    ):
        code, out, err = run("calibrate", *words, *SMALL)
        lines = [line for line in err.splitlines() if "error:" in line]
        assert (code, out, len(lines)) == (2, "", 1), err
        assert told in lines[0]
    assert not list(tmp_path.glob("*.calibrated.ckpt"))
