"""Cross-validation and runs over seeds from Python: what is told is what was measured, and what is done is kept."""

import csv
import re
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from lit_transfer import load_predictor
from lit_transfer.callbacks import TolerantRestore
from lit_transfer.data import ImageFolderData, TableData
from lit_transfer.modules import ImageClassifier, ImageRegressor, MultiLabelClassifier
from lit_transfer.runs import _each, cross_validate, run_seeds

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


class EndedError(Exception):
    pass


class EndsIn(Callback):
    """Ends the training of one run, after its first epoch."""

    def __init__(self, place: Path, name: str) -> None:
        self.active = place.name == name

    def on_train_epoch_start(self, trainer: Trainer, *_: object) -> None:
        if self.active and trainer.current_epoch == 1:
            raise EndedError


def trainer_of(place: Path, ends_in: str = "", epochs: int = 2) -> Trainer:
    last = ModelCheckpoint(place / "checkpoints", filename="last", enable_version_counter=False)
    return Trainer(
        max_epochs=epochs, default_root_dir=place, callbacks=[last, EndsIn(place, ends_in), TolerantRestore()], **QUIET
    )


def once(place: Path) -> Trainer:
    return trainer_of(place, epochs=1)


def classifier() -> ImageClassifier:
    return ImageClassifier("squeezenet1_1", weights=None, input_size=32, dropout=0.5)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "out_of_fold.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory, photos: Path):
    folder = tmp_path_factory.mktemp("folds")

    def data() -> ImageFolderData:
        return ImageFolderData(photos, 8, num_workers=0)

    return folder, data, cross_validate(classifier, data, folds=3, folder=folder, make_trainer=trainer_of)


def test_each_image_is_answered_once_by_the_module_that_has_not_seen_it(folds, photos: Path) -> None:
    folder, data, _ = folds
    rows = rows_of(folder)
    assert list(rows[0]) == ["path", "target", "fold", "label", "probability", "p(blue)", "p(red)"]
    assert sorted(row["path"] for row in rows) == sorted(
        p.relative_to(photos).as_posix() for p in photos.rglob("*.png")
    )
    assert all(row["target"] == Path(row["path"]).parent.name for row in rows)
    for fold in range(3):
        predictor = load_predictor(folder / f"fold_{fold}" / "checkpoints" / "last.ckpt", "cpu")
        cut = data()
        cut.take_fold(fold, 3)
        cut.setup()
        own = [row for row in rows if row["fold"] == str(fold)]
        assert [row["path"] for row in own] == [cut.name_of(path) for path, _ in cut.val_dataset.samples]
        for row, answer in zip(own, predictor([photos / row["path"] for row in own]), strict=True):
            assert float(row["p(red)"]) == pytest.approx(answer.probabilities["red"], abs=1e-5)


def test_mean_and_spread_are_those_of_the_folds_and_the_last_is_over_all_answers(folds) -> None:
    folder, _, summary = folds
    each = [values["val_acc"] for values in summary.runs.values()]
    assert list(summary.runs) == ["fold_0", "fold_1", "fold_2"]
    assert summary.mean["val_acc"] == pytest.approx(mean(each))
    assert summary.std["val_acc"] == pytest.approx(stdev(each))
    rows = rows_of(folder)
    assert summary.pooled["acc"] == pytest.approx(mean(row["label"] == row["target"] for row in rows))
    heading, *table = summary.rows()
    assert heading[1:] == ["fold_0", "fold_1", "fold_2", "mean", "std", "all answers"]
    assert [row[0] for row in table] == summary.metrics


def test_an_interrupted_run_goes_on_and_ends_where_the_whole_one_does(folds, tmp_path: Path) -> None:
    folder, data, whole = folds
    with pytest.raises(EndedError):
        cross_validate(
            classifier, data, folds=3, folder=tmp_path, make_trainer=lambda place: trainer_of(place, "fold_1")
        )
    assert {row["fold"] for row in rows_of(tmp_path)} == {"0"}
    trained: list[str] = []

    def noted(place: Path) -> Trainer:
        trained.append(place.name)
        return trainer_of(place)

    again = cross_validate(classifier, data, folds=3, folder=tmp_path, make_trainer=noted)
    assert trained == ["fold_1", "fold_2"]
    assert again.runs == whole.runs
    assert rows_of(tmp_path) == rows_of(folder)
    cross_validate(classifier, data, folds=3, folder=tmp_path, make_trainer=noted)
    assert len(trained) == 2  # nothing is left to do


def test_a_folder_with_other_runs_is_refused(folds) -> None:
    folder, data, _ = folds
    for options, told in (({"folds": 4}, "over 3 folds, not 4"), ({"seed": 1}, "seed was 0 and is 1")):
        with pytest.raises(ValueError, match=told):
            cross_validate(classifier, data, **{"folds": 3, "folder": folder, **options})
    with pytest.raises(ValueError, match="over folds, not over seeds"):
        run_seeds(classifier, data, folder=folder)


def test_seeds_differ_in_all_but_the_split_and_repeat_themselves(tmp_path: Path, photos: Path) -> None:
    made: list[ImageFolderData] = []

    def data() -> ImageFolderData:
        made.append(ImageFolderData(photos / "train", 8, num_workers=0))
        return made[-1]

    seeds: list[int] = []

    def module() -> ImageClassifier:
        seeds.append(torch.initial_seed())  # of the head, dropout, and all else that torch draws
        return classifier()

    first = run_seeds(module, data, seeds=2, folder=tmp_path / "a", make_trainer=once)
    assert seeds == [0, 1]
    assert made[0].val_dataset.samples == made[1].val_dataset.samples
    assert first.runs["seed_0"]["val_loss"] != first.runs["seed_1"]["val_loss"]
    assert not first.pooled
    more = run_seeds(classifier, data, seeds=[1, 4], folder=tmp_path / "a", make_trainer=once)
    assert list(more.runs) == ["seed_1", "seed_4"]
    assert more.runs["seed_1"] == first.runs["seed_1"]
    assert len(made) == 3  # seed 1 was there
    alone = run_seeds(classifier, data, seeds=[1], folder=tmp_path / "b", make_trainer=once)
    assert alone.runs == {"seed_1": first.runs["seed_1"]}
    assert alone.std["val_acc"] is None


@pytest.mark.parametrize(
    ("seeds", "told"), [([1, 1], "there twice"), ([], "at least 1"), (0, "at least 1"), ([-1], "below 0")]
)
def test_wrong_seeds(seeds, told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=told):
        run_seeds(classifier, object, seeds=seeds, folder=tmp_path)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Grey images with how bright they are, as labels and as numbers."""
    lines = ["path,grey,size,bright,dark"]
    for number in range(24):
        Image.fromarray(np.full((32, 32, 3), number * 10, np.uint8)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{number}.5,{number * number},{int(number > 8)},{int(number < 14)}")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    return tmp_path / "table.csv"


def test_numbers_are_pooled_in_their_own_units(table: Path, tmp_path: Path) -> None:
    def module() -> ImageRegressor:
        return ImageRegressor("squeezenet1_1", weights=None, input_size=32)

    def data() -> TableData:
        return TableData(table, 8, target=["grey", "size"], num_workers=0)

    summary = cross_validate(module, data, folds=2, folder=tmp_path / "cv", make_trainer=once)
    rows = rows_of(tmp_path / "cv")
    assert list(rows[0]) == ["path", "target(grey)", "target(size)", "fold", "grey", "size"]
    errors = [abs(float(row[name]) - float(row[f"target({name})"])) for row in rows for name in ("grey", "size")]
    assert summary.pooled["mae"] == pytest.approx(mean(errors), rel=1e-4)
    assert set(summary.pooled) == {"mae", "r2"}


def test_labels_are_pooled_by_what_no_threshold_enters(table: Path, tmp_path: Path) -> None:
    def module() -> MultiLabelClassifier:
        return MultiLabelClassifier("squeezenet1_1", weights=None, input_size=32)

    def data() -> TableData:
        return TableData(table, 8, target=["bright", "dark"], num_workers=0)

    summary = cross_validate(module, data, folds=2, folder=tmp_path / "cv", make_trainer=once)
    rows = rows_of(tmp_path / "cv")
    assert list(rows[0]) == ["path", "target", "fold", "labels", "p(bright)", "p(dark)"]
    assert next(row["target"] for row in rows if row["path"] == "10.png") == "bright; dark"
    assert 0 < summary.pooled["map"] <= 1


def test_best_weights_need_a_checkpoint_with_a_monitor(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(RuntimeError, match="measured='best' needs a ModelCheckpoint with a monitor"):
        run_seeds(
            classifier,
            lambda: ImageFolderData(photos, 8, num_workers=0),
            seeds=1,
            folder=tmp_path,
            measured="best",
            make_trainer=once,
        )


def test_data_without_folds_and_an_unknown_weights_word_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="take_fold"):
        cross_validate(classifier, torch.nn.Identity, folder=tmp_path)
    with pytest.raises(ValueError, match="expected one of"):
        cross_validate(classifier, torch.nn.Identity, folder=tmp_path, measured="first")  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.*tensorboardX")  # Lightning's advice where there is no TensorBoard
def test_the_code_of_the_page_runs(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "several_runs.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    assert "cross_validate(" in code
    assert "run_seeds(" in code
    monkeypatch.chdir(tmp_path)
    Path("photos").symlink_to(photos)
    # without a download, and in seconds
    monkeypatch.setattr(_each, "Trainer", lambda **options: Trainer(**{**options, "max_epochs": 1}))
    for old, new in (('"resnet18"', '"squeezenet1_1", weights=None, input_size=32'), ("max_epochs=20", "max_epochs=1")):
        assert old in code
        code = code.replace(old, new)
    exec(code, {})
    assert len(rows_of(Path("runs/folds"))) == 24
