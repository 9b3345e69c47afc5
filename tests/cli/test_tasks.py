"""`fit`, `validate` and `predict` with each task, on data of the user's own."""

import csv
import json
from pathlib import Path

import pytest

SMALL = (
    "--model.weights=null",
    "--model.backbone=squeezenet1_1",
    "--model.input_size=32",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
)
BEST = "runs/version_0/checkpoints/best.ckpt"
TASKS = {
    "ImageRegressor": ("Numbers", "scatter", ["brightness", "darkness"]),
    "MultiLabelClassifier": ("Labels", "thresholds", ["labels", "p(bright)", "p(dark)"]),
}


@pytest.fixture(params=TASKS)
def task(run, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that `fit` has trained in this folder."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    data, picture, _ = TASKS[request.param]
    code, out, err = run("fit", "--model", request.param, "--data", f"own_data.{data}", *SMALL)
    assert code == 0, err
    assert BEST in out
    assert f"runs/version_0/{picture}.png" in out
    assert Path(f"runs/version_0/{picture}.png").stat().st_size > 1000
    return request.param


def test_a_fit_is_measured_and_predicts(run, task: str, photos: Path) -> None:
    data, _, columns = TASKS[task]
    code, out, err = run("validate", "--ckpt_path", BEST, "--data", f"own_data.{data}", "--trainer.accelerator=cpu")
    assert code == 0, err
    assert "val_loss" in out
    code, _, err = run("predict", BEST, photos / "val", "-o", "out.csv")
    assert code == 0, err
    with Path("out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", *columns]
    assert len(rows) == 8
    code, out, err = run("predict", BEST, photos / "val", "--json")
    assert code == 0, err
    answers = [json.loads(line) for line in out.splitlines()]
    named = next(value for value in answers[0].values() if isinstance(value, dict))
    assert [float(rows[0][column]) for column in columns[-2:]] == pytest.approx(list(named.values()), rel=1e-5)
