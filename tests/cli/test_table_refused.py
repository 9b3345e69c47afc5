"""What is wrong with a table, or with what is asked of it: one line, exit code 2, and nothing left behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

SMALL = (
    "--model.backbone=squeezenet1_1",
    "--model.weights=null",
    "--data=TableData",
    "--data.image_size=32",
    "--data.batch_size=8",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.enable_progress_bar=false",
)
TASKS = {"MultiLabelClassifier": "[a, b]", "ImageRegressor": "[x, y]"}
HEADING = "path,a,b,x,y"


@pytest.fixture
def rows(tmp_path: Path) -> list[str]:
    """Rows of 16 images, two labels and two numbers; the images are there."""
    generator = np.random.default_rng(0)
    for number in range(16):
        Image.fromarray(generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:2000])
    return [f"{n}.png,{n % 2},{n // 2 % 2},{1.5 * n},{n % 5 + 0.5}" for n in range(16)]


@pytest.fixture
def refused(run: Callable[..., Any], rows: list[str], tmp_path: Path) -> Callable[..., str]:
    """Run `fit` on these rows and others, in a folder without runs, and give the one line of its error."""

    def refused(*words: str, more: tuple[str, ...] = (), heading: str = HEADING) -> str:
        (tmp_path / "t.csv").write_text("\n".join([heading, *rows, *more]))
        table = () if any("data.table" in word for word in words) else ("--data.table=t.csv",)
        code, out, err = run("fit", *SMALL, *table, *words)
        (line,) = (line for line in err.splitlines() if "error:" in line)
        assert (code, out) == (2, "")
        assert not Path("runs").exists()
        return str(line)

    return refused


@pytest.mark.parametrize("model", TASKS)
def test_bad_rows_and_columns(refused: Callable[..., str], model: str) -> None:
    asked = (f"--model={model}", f"--data.target={TASKS[model]}")
    assert "data.table must be a CSV or Parquet file; at 'no.csv'" in refused(*asked, "--data.table=no.csv")
    told = refused(f"--model={model}", "--data.target=[aa, b]")
    assert "data.target='aa' is no column of 't.csv'. Did you mean 'a'?" in told
    told = refused(*asked, more=("none.png,1,0,2.5,1",))
    assert "line 18: there is no file 'none.png' in data.root=" in told
    assert ". Correct the paths, which start from data.root, or leave these rows out." in told
    told = refused(*asked, more=("0.png,1,0",))
    assert "data.table='t.csv', line 18: 3 cells under a heading of 5. Put cells that hold" in told
    told = refused(*asked, more=("1.png,,,,",))
    assert "line 18: the target" in told
    assert "is empty. Fill in the target, or leave these rows out." in told
    told = refused(*asked, more=("cut.png,1,0,2.5,1",))  # its header is whole: found when it is read
    assert "cut.png': image file is truncated. Repair the file, or leave it out of data.root or the table." in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model=ImageRegressor", "--data.target=[a, b]"], "has label_names (a, b): train a MultiLabelClassifier"),
        (["--model=MultiLabelClassifier", "--data.target=[x, y]"], "has target_names (x, y): train an ImageRegressor"),
        (["--model=ImageClassifier", "--data.target=[a, b]"], "on it (--model MultiLabelClassifier), or give other"),
        (["--data.target=[x, y]"], "(--model ImageRegressor), or give other data; what a table holds, data.task says"),
        (["--model=ImageRegressor", "--data.target=[x, y]", "--model.num_targets=3"], "leave num_targets out"),
        (["--model=MultiLabelClassifier", "--data.target=[a, b]", "--model.num_labels=3"], "leave num_labels out"),
    ],
)
def test_data_of_another_task_or_number(refused: Callable[..., str], words: list[str], told: str) -> None:
    assert told in refused(*words)


def test_a_target_that_would_hide_the_images_in_the_answers(refused: Callable[..., str]) -> None:
    words = ("--model=ImageRegressor", "--data.image=image", "--data.target=[path, y]")
    assert "a target is named 'path'" in refused(*words, heading="image,a,b,path,y")


def test_what_is_there_already_stays(run: Callable[..., Any], refused: Callable[..., str], rows: list[str]) -> None:
    """A folder of another run, a folder of this version, and a run that was measured."""
    Path("runs/version_0").mkdir(parents=True)
    code, _, err = run("fit", *SMALL, "--data.table=no.csv")
    assert code == 2, err
    assert [path.name for path in Path("runs").iterdir()] == ["version_0"]
    words = ("--trainer.logger=CSVLogger", "--trainer.logger.save_dir=runs", "--trainer.logger.name=")
    code, _, err = run("fit", *SMALL, *words, "--trainer.logger.version=0", "--data.table=no.csv")
    assert code == 2, err
    assert Path("runs/version_0").exists()
