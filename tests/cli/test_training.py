import csv
import os
from pathlib import Path

import pytest
import torch
import yaml

from lit_transfer.modules import Prediction, TransferModule

# A small net at a small size, without a download.
SMALL = (
    "--model.weights=null",
    "--data.image_size=32",
    "--data.batch_size=8",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=2",
    "--trainer.enable_progress_bar=false",
)


@pytest.fixture
def fitted(run, photos: Path) -> Path:
    """The folder that a run of `fit` left, without any YAML."""
    code, out, err = run("fit", f"--data.root={photos}", "--model.backbone", "resnet18", *SMALL)
    assert code == 0, err
    folder = Path("runs/version_0")
    for line in ("best.ckpt", "metrics.csv", "metrics.png", "confusion.png", "config.yaml"):
        assert f"{folder}" in out
        assert line in out
    assert f"lit-transfer predict {folder / 'checkpoints/best.ckpt'} PHOTOS -o out.csv" in out
    return folder


def test_fit_leaves_the_best_checkpoint_the_log_its_plot_and_the_config(fitted: Path) -> None:
    left = {str(path.relative_to(fitted)) for path in fitted.rglob("*") if path.is_file()}
    assert left == {
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "metrics.csv",
        "metrics.png",
        "confusion.png",
        "config.yaml",
        "hparams.yaml",
    }
    saved = torch.load(fitted / "checkpoints/best.ckpt", weights_only=True)
    assert saved["lit_transfer"]["class_names"] == ["blue", "red"]


def test_the_config_reruns(run, fitted: Path) -> None:
    code, _, err = run("fit", "--config", fitted / "config.yaml")
    assert code == 0, err
    first, second = (
        torch.load(f"runs/version_{n}/checkpoints/last.ckpt", weights_only=True)["state_dict"] for n in (0, 1)
    )
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_print_config_gives_a_file_that_reruns(run, photos: Path) -> None:
    _, out, _ = run("fit", f"--data.root={photos}", *SMALL, "--print_config")
    Path("printed.yaml").write_text(out)
    assert yaml.safe_load(out)["model"]["class_path"] == "lit_transfer.modules.ImageClassifier"
    code, _, err = run("fit", "--config", "printed.yaml", "--trainer.fast_dev_run=true")
    assert code == 0, err


def test_test_needs_no_model_and_flags_win(run, fitted: Path, photos: Path) -> None:
    code, out, err = run(
        "validate",
        f"--ckpt_path={fitted / 'checkpoints/best.ckpt'}",
        f"--data.root={photos}",
        "--data.image_size=32",
        "--trainer.accelerator=cpu",
        "--model.label_smoothing=0.25",
        "--print_config",
    )
    assert code == 0, err
    assert yaml.safe_load(out)["model"]["init_args"]["label_smoothing"] == 0.25
    code, out, err = run(
        "test",
        "--ckpt_path",
        fitted / "checkpoints/best.ckpt",
        f"--data.root={photos}",
        "--data.test_fraction=0.25",
        "--data.image_size=32",
        "--trainer.accelerator=cpu",
    )
    assert code == 0, err
    assert "test_acc" in out


def test_predict_needs_nothing_else(run, fitted: Path, photos: Path) -> None:
    code, out, err = run("predict", fitted / "checkpoints/best.ckpt", photos / "val", "-o", "out.csv")
    assert code == 0, err
    assert "8 images -> out.csv" in out
    with Path("out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "label", "probability", "p(blue)", "p(red)"]
    assert [Path(row["path"]).parent.name for row in rows] == ["blue"] * 4 + ["red"] * 4
    assert all(abs(float(row["p(blue)"]) + float(row["p(red)"]) - 1) < 1e-5 for row in rows)


def test_predict_writes_no_half_file(run, fitted: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    code, _, err = run(
        "predict", fitted / "checkpoints/best.ckpt", photos / "val", tmp_path / "torn.jpg", "-o", "out.csv"
    )
    assert code == 2
    assert "torn.jpg" in err
    assert not Path("out.csv").exists()


def test_an_answer_with_a_path_of_its_own_is_refused(
    run, own_checkpoint: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Prediction, "columns", lambda self: {"path": 1.0, "label": self.label})
    Path("out.csv").write_text("before")
    code, _, err = run("predict", own_checkpoint, photos / "val", "-o", "out.csv")
    assert (code, "a column 'path' of their own" in err, "--json" in err) == (2, True, True)
    assert Path("out.csv").read_text() == "before"
    code, _, err = run("predict", own_checkpoint, photos / "val", "--json", "-o", "out.csv")
    assert code == 0, err


def test_the_optimizer_and_the_task_are_switched_by_flags(run, photos: Path) -> None:
    words = ("--model.optimizer", "SGD", "--model.optimizer.lr", "0.1", "--trainer.fast_dev_run=true")
    code, _, err = run("fit", f"--data.root={photos}", *SMALL, *words)
    assert code == 0, err
    code, out, err = run("fit", "--model", "ImageClassifier", "--data", "DigitsData", *words, "--print_config")
    assert code == 0, err
    assert yaml.safe_load(out)["data"]["class_path"] == "lit_transfer.data.DigitsData"


def test_a_chosen_class_has_its_own_defaults(run, tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text("data:\n  class_path: lit_transfer.data.DigitsData\n")
    for words in (["--data", "DigitsData"], ["--data=lit_transfer.data.DigitsData"], ["--config", "digits.yaml"]):
        code, out, err = run("fit", *words, "--print_config")
        assert code == 0, err
        init_args = yaml.safe_load(out)["data"]["init_args"]
        assert init_args["test_fraction"] == 0.2  # that of ImageFolderData is 0
        assert init_args["num_workers"] == 0


@pytest.mark.parametrize(
    "callback",
    [
        ["--trainer.callbacks+=lit_transfer.callbacks.FinetuningSchedule", "--trainer.callbacks.phases=linear_probe"],
        ["--config", "alone.yaml"],  # one that is no list, as Lightning's Trainer takes it
    ],
)
def test_a_callback_by_class_path(run, photos: Path, callback: list[str]) -> None:
    alone = {"class_path": "lit_transfer.callbacks.FinetuningSchedule", "init_args": {"phases": "linear_probe"}}
    Path("alone.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": alone}}))
    code, _, err = run("fit", f"--data.root={photos}", *SMALL, *callback)
    assert code == 0, err
    module = TransferModule.load_from_checkpoint("runs/version_0/checkpoints/last.ckpt")
    torch.manual_seed(0)
    assert module.backbone.state_dict()["bn1.num_batches_tracked"] == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model.backbone", "resnet81"], ["resnet81", "resnet18"]),
        (["--model.bakcbone", "resnet18"], ["bakcbone", "backbone"]),
        (["--trainer.max_epoch", "3"], ["max_epoch", "max_epochs"]),
        (["--data.root", "nowhere"], ["data.root", "nowhere"]),
        (["--model.weights", "nowhere.pth"], ["weights", "nowhere.pth"]),
        (["--ckpt_path", "nowhere.ckpt"], ["ckpt_path", "nowhere.ckpt"]),
        (["--model.num_classes", "5"], ["num_classes=5", "2 classes"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml"]),
        (
            ["--trainer.callbacks+=FinetuningSchedule", "--trainer.callbacks.phases=linear_prob"],
            ["--trainer.callbacks.phases", "'linear_prob'", "Nearest: linear_probe"],
        ),
        (["--model", "ImageClasifier"], ["ImageClasifier", "ImageClassifier"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(run, photos: Path, words: list[str], told: list[str]) -> None:
    code, _, err = run("fit", f"--data.root={photos}", *SMALL, *words)
    lines = [line for line in err.splitlines() if "error:" in line]
    assert code == 2
    assert len(lines) == 1
    assert all(word in lines[0] for word in told), lines[0]
    assert "Traceback" not in err
    assert "Union" not in err  # what jsonargparse wraps around an error
    assert not Path("runs").exists() or not any(Path("runs").rglob("*.ckpt"))


def test_missing_data_root_is_named(run) -> None:
    code, _, err = run("fit", *SMALL)
    assert code == 2
    assert err.splitlines()[-1] == "lit-transfer fit: error: --data.root must be given."


def test_a_truncated_checkpoint(run, fitted: Path, photos: Path) -> None:
    path = fitted / "checkpoints/best.ckpt"
    os.truncate(path, path.stat().st_size // 2)
    code, _, err = run("test", "--ckpt_path", path, f"--data.root={photos}")
    assert code == 2
    assert "best.ckpt" in err


def test_an_average_of_weights_and_patience_by_one_flag_each(run, photos: Path) -> None:
    words = ("fit", f"--data.root={photos}", "--model.backbone", "squeezenet1_1", *SMALL, "--trainer.max_epochs=6")
    code, _, err = run(*words, "--ema=0.9", "--patience=1")
    assert code == 0, err
    saved = torch.load("runs/version_0/checkpoints/last.ckpt", weights_only=True)
    assert saved["epoch"] < 5
    assert not torch.equal(saved["state_dict"]["head.weight"], saved["current_model_state"]["head.weight"])
    assert {name.partition("{")[0] for name in saved["callbacks"]} >= {"EMA", "PhasedStopping"}
    code, _, err = run("predict", "runs/version_0/checkpoints/best.ckpt", photos / "val")
    assert code == 0, err
    for flags, told in (
        (["--ema=1.5"], "decay must be a number from 0 to below 1, got 1.5"),
        (["--patience=0"], "--patience"),
        (["--ema=0.9", "--trainer.callbacks+=EMA"], "--ema adds what EMA among the callbacks does"),
    ):
        code, _, err = run(*words, *flags)
        assert (code, told in err.splitlines()[-1]) == (2, True), err
    code, _, err = run("test", "--ckpt_path=runs/version_0/checkpoints/best.ckpt", f"--data.root={photos}", "--ema=0.9")
    assert (code, "--ema is about training" in err) == (2, True)
