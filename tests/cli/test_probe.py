"""`probe` reads images once, measures every stage, and notices what has changed."""

import csv
import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.models import squeezenet1_1

from lit_transfer import save_weights
from lit_transfer.cli._probes import largest_class, linear_probe, nearest_neighbours, standard_error, verdict

SMALL = ("--model.weights=null", "--data.image_size=32", "--data.batch_size=6", "--trainer.accelerator=cpu")
STAGES = ["stem", "stage1", "stage2", "stage3", "stage4"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIT_TRANSFER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


def spoil(folder: Path) -> None:
    """Make every photo unreadable, with the size and the time that it had."""
    for path in folder.rglob("*.png"):
        found = path.stat()
        path.write_bytes(b"x" * found.st_size)
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def test_a_table_a_file_a_picture_and_json(run: Any, photos: Path, cache: Path) -> None:
    words = ("probe", f"--data.root={photos}", "--model.backbone=resnet18", *SMALL)
    code, out, err = run(*words, "-o", "probe.csv", "--plot", "probe.png")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("resnet18: 16 images to learn from, 8 to measure on; always saying the most frequent")
    assert lines[1].endswith(f"once for all stages, and stored in {cache}")
    assert lines[3].split() == ["boundary", "frozen", "trains", "width", "linear", "probe", "k-NN"]
    with Path("probe.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["boundary"] for row in rows] == STAGES
    assert [int(row["width"]) for row in rows] == [64, 64, 128, 256, 512]
    assert [int(row["frozen"]) for row in rows] == [9536, 157504, 683072, 2782784, 11176512]
    assert {int(row["frozen"]) + int(row["trains"]) for row in rows} == {11176512 + 2 * 512 + 2}
    assert float(rows[0]["probe"]) == 1.0  # red photos from blue ones
    assert Path("probe.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = run(*words, "--json", "--boundaries", "stage4", "stem")
    told = json.loads(out)
    assert [row["boundary"] for row in told["boundaries"]] == ["stem", "stage4"]
    assert (told["train"], told["val"], told["most_frequent_class"]) == (16, 8, 0.5)
    assert told["boundaries"][0]["probe"] == 1.0
    assert "backbone, every stage averaged, train: 16 x 1024 float32" in run("cache", "list")[1]


def test_a_second_run_reads_no_image_and_a_changed_file_or_weight_is_noticed(run: Any, photos: Path) -> None:
    shutil.copytree(photos, "photos")
    torch.manual_seed(0)
    model = squeezenet1_1()
    save_weights(model, "weights.pth")
    words = ["probe", "--data.root=photos", "--model.backbone=squeezenet1_1", *SMALL[1:], "--data.verify=false"]
    words += ["--model.weights=weights.pth", "--boundaries", "stage1"]
    code, first, err = run(*words)
    assert code == 0, err
    assert "features computed" in first
    spoil(Path("photos"))
    code, second, err = run(*words)
    assert code == 0, err
    assert "features found" in second
    assert second.splitlines()[2:] == first.splitlines()[2:]

    code, _, err = run(*words, "--data.image_size=40")
    assert (code, "broken image" in err) == (2, True)
    with torch.no_grad():
        model.features[0].weight[0, 0, 0, 0] += 1e-3
    save_weights(model, "weights.pth")
    code, _, err = run(*words)
    assert (code, "broken image" in err) == (2, True)
    with torch.no_grad():
        model.features[0].weight[0, 0, 0, 0] -= 1e-3
    save_weights(model, "weights.pth")
    os.utime(Path("photos/val/red/0.png"))
    code, _, err = run(*words)
    assert (code, "broken image" in err) == (2, True)


def finetuned(run: Any, photos: Path, *boundaries: str) -> list[dict[str, str]]:
    words = ("probe", f"--data.root={photos}", "--model.backbone=squeezenet1_1", *SMALL, "-o", "probe.csv")
    code, out, err = run(*words, "--finetune", "--finetune_epochs=2", "--boundaries", *boundaries)
    assert code == 0, err
    assert "fine-tuned: best at" in out
    with Path("probe.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_fine_tuning_above_each_boundary_on_cached_features(run: Any, photos: Path) -> None:
    rows = finetuned(run, photos, "none", "stage1", "stage3")
    assert [row["boundary"] for row in rows] == ["none", "stage1", "stage3"]
    assert [row["probe"] == "" for row in rows] == [True, False, False]
    assert [int(row["trains"]) for row in rows] == [723522, 697890, 1026]
    assert all(0 <= float(row["finetuned"]) <= 1 and float(row["seconds"]) > 0 for row in rows)
    stored = re.findall(r"at backbone(\S*), (?:train|val):", run("cache", "list")[1])
    assert stored == ["", "", ".features.4", ".features.4"]
    assert finetuned(run, photos, "stage1")[0]["finetuned"] == rows[1]["finetuned"]


def test_tokens_and_a_timm_name(run: Any, photos: Path) -> None:
    words = ("--model.backbone=timm/vit_tiny_patch16_224", "--model.input_size=32", "--json")
    code, out, err = run("probe", f"--data.root={photos}", *SMALL, *words, "--finetune", "--boundaries", "stage9")
    assert code == 0, err
    (row,) = json.loads(out)["boundaries"]
    assert row["width"] == 192
    assert row["finetuned"] is not None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--boundaries", "stgae1"], "there is no stage 'stgae1'. Nearest: stage1.*Stages: stem, stage1"),
        (["--boundaries", "none"], "--finetune"),
        (["--plot", "nowhere/a.png"], "no folder 'nowhere'"),
        (["--plot", "a.docx"], "type 'docx'.*png"),
        (["-o", "nowhere/a.csv"], "no folder 'nowhere'"),
        (["--neighbors", "3"], "Nearest: neighbours"),
        (["--neighbours", "0"], "neighbours"),
        (["--trainer.max_epochs=3"], "--finetune_epochs"),
        (["--trainer.devices=2"], "one device"),
        (["--data.val_fraction=0", "--data.root=flat"], "0 loaders of val"),
        (["--data.root=missing"], "missing"),
    ],
)
def test_what_is_wrong_is_one_line_before_any_image_is_read(
    run: Any, photos: Path, cache: Path, words: list[str], told: str
) -> None:
    shutil.copytree(photos / "train", "flat")
    code, out, err = run("probe", f"--data.root={photos}", "--model.backbone=resnet18", *SMALL, *words)
    lines = [line for line in err.splitlines() if "error:" in line]
    assert (code, out, len(lines)) == (2, "", 1)
    assert re.search(told, lines[0]), lines[0]
    assert not cache.exists()


@pytest.mark.parametrize(
    ("model", "target", "told"),
    [
        ("ImageClassifier", "label", None),
        ("ImageClassifier", "[red, size]", "--model ImageRegressor"),
        ("MultiLabelClassifier", "[red, dark]", "--data.target LABEL --data.task class --model ImageClassifier"),
        ("ImageRegressor", "[red, size]", "linear_probe and FeatureCaching"),
        ("ImageClassifier", "red", None),
    ],
)
def test_a_table(run: Any, photos: Path, model: str, target: str, told: str | None) -> None:
    files = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
    rows = [
        f"{file},{file.split('/')[1]},{file.split('/')[0]},{int('red' in file)},{n % 2},{n + 0.5}"
        for n, file in enumerate(files)
    ]
    Path("t.csv").write_text("\n".join(["path,label,split,red,dark,size", *rows]))
    table = ("--data=TableData", "--data.table=t.csv", f"--data.root={photos}", "--data.split=split")
    words = (f"--model={model}", "--model.backbone=squeezenet1_1", *SMALL, "--boundaries", "stem", "--json")
    task = ("--data.task=number",) if "size" in target else ()
    task = ("--data.task=class",) if target == "red" else task
    code, out, err = run("probe", *words, *table, f"--data.target={target}", *task)
    if told is not None:
        assert (code, out, err.count("error:"), told in err) == (2, "", 1, True), err
        return
    assert code == 0, err
    found = json.loads(out)
    assert (found["train"], found["val"]) == (16, 8)
    assert found["boundaries"][0]["probe"] == 1.0


class Augmenting(Dataset[Any]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        return torch.rand(3, 32, 32), index % 2


class OwnData(LightningDataModule):
    num_classes = 2

    def __init__(self, kind: str = "plain") -> None:
        super().__init__()
        images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        labels = torch.arange(8) % 2
        images[labels == 1] += 1
        self.data = {
            "plain": TensorDataset(images, labels),
            "random": Augmenting(),
            "unknown": TensorDataset(images, labels),
            "many": TensorDataset(images, torch.ones(8, 4)),
        }[kind]
        if kind == "unknown":
            self.data.lock = iter(DataLoader([0]))  # cannot be told apart from run to run

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.data, batch_size=4, shuffle=True)

    val_dataloader = train_dataloader


@pytest.mark.filterwarnings("ignore:.*does not have many workers|Your `val_dataloader`.*shuffl")
@pytest.mark.parametrize(
    ("kind", "told"), [("plain", None), ("unknown", None), ("random", "augmentation"), ("many", "one class")]
)
def test_any_datamodule(run: Any, cache: Path, kind: str, told: str | None) -> None:
    words = ("--model.backbone=squeezenet1_1", "--model.weights=null", "--trainer.accelerator=cpu", "--json")
    code, out, err = run("probe", f"--data={OwnData.__module__}.OwnData", f"--data.kind={kind}", *words)
    if told is not None:
        assert (code, told in err) == (2, True)
        return
    assert code == 0, err
    found = json.loads(out)
    assert found["boundaries"][0]["probe"] == 1.0
    assert ("not kept for another run" in found["notes"][0]) == (kind == "unknown")
    assert len(list(cache.iterdir())) == (0 if kind == "unknown" else 1)  # train and val are the same here


def test_measures() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 20)
    vectors = generator.normal(size=(60, 8)).astype(np.float32)
    vectors[np.arange(60), labels] += 8
    vectors = vectors * np.float32(1e-3) + np.float32(5)  # a linear probe must not mind units
    assert linear_probe(vectors[::2], labels[::2], vectors[1::2], labels[1::2]) == 1.0
    assert nearest_neighbours(vectors[::2] - 5, labels[::2], vectors[1::2] - 5, labels[1::2], neighbours=99) < 0.5
    assert nearest_neighbours(vectors[::2] - 5, labels[::2], vectors[1::2] - 5, labels[1::2], neighbours=5) > 0.9
    assert largest_class(np.array([0, 1, 1]), np.array([0, 0, 0, 1])) == 0.25


def test_two_standard_errors_decide_what_is_told_apart() -> None:
    assert standard_error(0.9, 100) == pytest.approx(0.03)
    assert math.isclose(standard_error(1.0, 100), 0)
    # Of 100 images, 0.90 and 0.80 are 2.0 standard errors of their difference apart (0.05), 0.90 and 0.79 are 2.2.
    assert verdict("k-NN", {"stem": 0.79, "stage1": 0.81, "stage2": 0.9}, 100) == (
        "k-NN: best at stage2, 90.0% ± 3.0%; not told apart from it: stage1"
    )
    assert verdict("k-NN", {"stem": 0.79, "stage1": 0.9}, 100).endswith("every other one is worse")
    assert verdict("k-NN", {"stem": 0.5}, 100) == "k-NN: best at stem, 50.0% ± 5.0%"
