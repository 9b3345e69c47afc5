"""`fit --folds` and `fit --seeds`: runs that a plain `fit` repeats, their table, and what goes on."""

import csv
import json
from pathlib import Path

import pytest
import torch

SMALL = (
    "--model.weights=null",
    "--model.backbone=squeezenet1_1",
    "--model.dropout=0.5",
    "--data.image_size=32",
    "--data.batch_size=8",
    "--data.num_workers=0",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.enable_progress_bar=false",
)


def weights(folder: str) -> dict[str, torch.Tensor]:
    return torch.load(f"{folder}/checkpoints/last.ckpt", weights_only=True)["state_dict"]


def same(first: str, second: str) -> bool:
    other = weights(second)
    return all(torch.equal(value, other[name]) for name, value in weights(first).items())


def test_folds_leave_a_table_and_one_fold_is_a_run_by_itself(run, photos: Path) -> None:
    code, out, err = run("fit", "--folds=3", f"--data.root={photos}", *SMALL)
    assert code == 0, err
    for told in ("3 runs of 1 epoch", "val_acc", "mean", "±", "all answers", "sample standard deviation over 3 runs"):
        assert told in out
    with Path("runs/version_0/out_of_fold.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 24
    for name in ("fold_0", "fold_1", "fold_2"):
        left = {path.name for path in Path("runs/version_0", name).rglob("*") if path.is_file()}
        assert {"best.ckpt", "last.ckpt", "metrics.csv", "config.yaml", "metrics.png", "predictions.csv"} <= left
    code, _, err = run("fit", "--config", "runs/version_0/fold_1/config.yaml")
    assert code == 0, err
    assert same("runs/version_0/fold_1", "runs/version_1")
    assert not same("runs/version_0/fold_0", "runs/version_1")


def test_a_fold_is_measured_by_validate(run, photos: Path) -> None:
    code, _, err = run("fit", "--folds=2", "--fold=1", f"--data.root={photos}", *SMALL)
    assert code == 0, err
    words = ("--data.image_size=32", "--trainer.accelerator=cpu", "--ckpt_path=runs/version_0/checkpoints/last.ckpt")
    code, _, err = run("validate", "--folds=2", "--fold=1", f"--data.root={photos}", *words)
    assert code == 0, err
    code, _, err = run("test", "--folds=2", "--fold=1", f"--data.root={photos}", *words)
    assert code == 2
    assert "leave them out" in err


def test_a_seed_is_the_run_that_plain_flags_give_and_json_is_all_there_is(run, photos: Path) -> None:
    code, out, err = run("fit", "--seeds=[2, 3]", "--json", f"--data.root={photos}", *SMALL)
    assert code == 0, err
    found = json.loads(out)
    assert list(found["runs"]) == ["seed_2", "seed_3"]
    assert found["pooled"] == {}
    values = [found["runs"][name]["val_loss"] for name in ("seed_2", "seed_3")]
    assert values[0] != values[1]
    assert found["mean"]["val_loss"] == pytest.approx(sum(values) / 2)
    assert found["std"]["val_loss"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    code, _, err = run("fit", "--seed_everything=3", "--data.seed=3", f"--data.root={photos}", *SMALL)
    assert code == 0, err
    assert same("runs/version_0/seed_3", "runs/version_1")


def test_resume_auto_trains_what_is_missing(run, photos: Path) -> None:
    words = ("--resume=auto", f"--data.root={photos}", *SMALL)
    code, _, err = run("fit", "--seeds=1", *words)
    assert code == 0, err
    before = Path("runs/version_0/seed_0/checkpoints/last.ckpt").stat().st_mtime_ns
    code, out, err = run("fit", "--seeds=2", *words)
    assert code == 0, err
    assert "1 of them are done" in out
    assert "seed_1 is done (2 of 2)" in out
    assert "seed_0 is done" not in out
    assert Path("runs/version_0/seed_0/checkpoints/last.ckpt").stat().st_mtime_ns == before
    assert not Path("runs/version_1").exists()
    code, _, err = run("fit", "--seeds=2", *words, "--trainer.max_epochs=2")
    assert code == 2
    assert "trainer.max_epochs was 1 and is 2" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--folds=1"], "at least two"),
        (["--folds=20"], "class 'blue' is in 12 image"),
        (["--folds=3", "--fold=3"], "numbered from 0"),
        (["--fold=1"], "needs --folds"),
        (["--seeds=[1, 1]"], "there twice"),
        (["--seeds=0"], "seeds"),
        (["--seeds=2", "--folds=2"], "go apart"),
        (["--json"], "--json is for the table"),
        (["--folds=2", "--measured=bst"], "Got value: bst"),
        (["--folds=2", "--trainer.fast_dev_run=true"], "fast_dev_run"),
        (["--folds=2", "--ckpt_path=best"], "--ckpt_path is of one run"),
        (["--seeds=2", "--trainer.devices=2"], "one device"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(run, photos: Path, words: list[str], told: str) -> None:
    code, _, err = run("fit", f"--data.root={photos}", *SMALL, *words)
    lines = [line for line in err.splitlines() if "error:" in line]
    assert code == 2
    assert len(lines) == 1
    assert told in lines[0]
    assert not list(Path().rglob("*.ckpt"))
