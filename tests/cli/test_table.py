"""A table as the data of a run."""

import pytest
import torch
import yaml

from lit_transfer.data import TableData

SMALL = (
    "--model.weights=null",
    "--data.image_size=32",
    "--data.batch_size=8",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.enable_progress_bar=false",
)


@pytest.fixture
def table(photos, tmp_path):
    rows = [
        f"{path.relative_to(photos).as_posix()},{path.parent.name},{path.parent.parent.name}"
        for path in sorted(photos.rglob("*.png"))
    ]
    file = tmp_path / "labels.csv"
    file.write_text("\n".join(["path,label,split", *rows]))
    return file


def test_fit_takes_a_table_and_its_config_reruns(run, table, photos):
    words = (f"--data.table={table}", f"--data.root={photos}", "--data.target=label", "--data.split=split")
    code, _, err = run("fit", "--model.backbone", "resnet18", "--data", "TableData", *words, *SMALL)
    assert code == 0, err
    saved = torch.load("runs/version_0/checkpoints/best.ckpt", weights_only=True)
    assert saved["lit_transfer"]["class_names"] == ["blue", "red"]
    code, _, err = run("fit", "--config", "runs/version_0/config.yaml", "--trainer.fast_dev_run=true")
    assert code == 0, err


@pytest.mark.parametrize("given", ["[a, b]", '["a","b"]', "a"])
def test_one_target_or_several_come_through_the_command_line(run, given):
    words = ("--data", "TableData", "--data.table=t.csv", "--data.target", given, "--data.task=multilabel")
    code, out, err = run("fit", *words, "--print_config")
    assert code == 0, err
    section = yaml.safe_load(out)["data"]
    assert section["class_path"] == f"{TableData.__module__.rpartition('.')[0]}.TableData"
    assert section["init_args"]["target"] == ("a" if given == "a" else ["a", "b"])


def test_bad_rows_are_told_on_one_line(run, table, photos):
    table.write_text(table.read_text() + "\nnone.png,blue,train" + "\nval/red/0.png,,val")
    words = (f"--data.table={table}", f"--data.root={photos}", "--data.target=label", "--data.split=split")
    code, _, err = run("fit", "--data", "TableData", *words, *SMALL)
    assert code == 2
    assert "has 2 bad rows: line 26: there is no file 'none.png'" in err
    assert "' line" not in err  # each row ends with a full stop
    assert "line 27: the target is empty. " in err
    assert err.count("\n") == 1
    code, _, err = run("fit", "--data", "TableData", f"--data.tabel={table}", *SMALL)
    assert code == 2
    assert "--data.tabel is no option. Nearest: table" in err
