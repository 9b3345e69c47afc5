"""What a table gives: classes, labels and numbers, their splits, and what modules are told."""

import json
import random
from statistics import fmean, pstdev

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lit_transfer.backbones import Preprocessing
from lit_transfer.data import ImageFolderData, TableData, is_image
from lit_transfer.modules import ImageClassifier

SMALL = Preprocessing(resize=10, crop=8, mean=(0.5,), std=(0.25,))


class Probe(LightningModule):
    """A linear layer that remembers what it was given; a sum of pixels stands for a batch."""

    preprocessing = SMALL

    def __init__(self, outputs):
        super().__init__()
        self.layer = nn.Linear(64, outputs)
        self.seen = []

    def training_step(self, batch, batch_idx):
        images, targets = batch
        self.seen.append((images.double().sum().item(), targets.tolist()))
        return nn.functional.mse_loss(self.layer(images.flatten(1)), targets)

    def validation_step(self, batch, batch_idx):
        self.log("val_mean", batch[0].mean(), batch_size=len(batch[0]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(folder, **options):
    options = {"max_epochs": 2, "logger": False, "enable_checkpointing": False, **options}
    return Trainer(
        accelerator="cpu", default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False, **options
    )


def ready(file, **options):
    data = TableData(file, **options)
    data.setup()
    return data


def samples(data):
    """Name of each image -> its target, of all splits."""
    sets = (data.train_dataset, data.val_dataset, data.test_dataset)
    return {path.name: target for dataset in sets if dataset for path, target in dataset.samples}


def names(dataset):
    return sorted(path.name for path, _ in dataset.samples)


# --- a class ---------------------------------------------------------------------------------------------------------


def test_a_column_of_words_is_a_class_and_gives_what_a_folder_gives(make_folder, tmp_path):
    root = make_folder({"ants": 10, "bees": 15})
    rows = [f"{path.relative_to(root).as_posix()},{path.parent.name}" for path in sorted(root.rglob("*.png"))]
    random.Random(0).shuffle(rows)
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]))
    data = ready(tmp_path / "labels.csv", root=root, test_fraction=0.2)
    folder = ImageFolderData(root, test_fraction=0.2)
    folder.setup()
    assert (data.class_names, data.num_classes, data.class_counts) == (["ants", "bees"], 2, [6, 9])
    assert (data.task, data.class_counts) == ("class", folder.class_counts)
    for split in ("train_dataset", "val_dataset", "test_dataset"):
        assert sorted(getattr(data, split).samples) == sorted(getattr(folder, split).samples)
    assert data.train_dataset.class_to_idx == {"ants": 0, "bees": 1}
    assert not hasattr(data, "label_names")


def test_numbers_of_classes_keep_their_order_and_names_can_be_given(make_table):
    file = make_table("path,label", *(f"{n}.png,{n % 11}" for n in range(33)))
    assert ready(file, task="class").class_names == [str(n) for n in range(11)]
    assert ready(file, task="class", names=[str(n) for n in range(12)], val_fraction=0).class_counts == [3] * 11 + [0]


def test_an_image_classifier_learns_from_a_table_and_keeps_its_names(photos, tmp_path):
    rows = [
        f"{path.relative_to(photos).as_posix()},{path.parent.name},{path.parent.parent.name}"
        for path in sorted(photos.rglob("*.png"))
    ]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,split", *rows]))

    def fit(data):
        torch.manual_seed(0)
        module = ImageClassifier("squeezenet1_1", weights=None, input_size=32)
        run = trainer(tmp_path, max_epochs=1)
        run.fit(module, data)
        return module, run.callback_metrics

    table = TableData(tmp_path / "labels.csv", 4, root=photos, target="label", split="split", image_size=32)
    module, metrics = fit(table)
    assert module.class_names == ["blue", "red"]
    other, expected = fit(ImageFolderData(photos, 4, image_size=32))
    assert metrics["val_loss"].isfinite()
    # The same images in the same order: the same bits (CPU, float32, one thread, batch size 4).
    assert torch.equal(metrics["val_loss"], expected["val_loss"])
    assert all(map(torch.equal, module.state_dict().values(), other.state_dict().values()))


# --- labels ----------------------------------------------------------------------------------------------------------


def test_columns_of_0_and_1_are_labels(make_table):
    cells = ["1,0,0", "0,1,1", "0,0,0", "1,1,0", "1,0,1.0"] * 4
    file = make_table("path,RBC,WBC,Platelets", *(f"{n}.png,{cell}" for n, cell in enumerate(cells)))
    data = ready(file, target=["RBC", "WBC", "Platelets"], image_size=8, batch_size=4, val_fraction=0)
    assert (data.task, data.label_names, data.label_counts) == ("multilabel", ["RBC", "WBC", "Platelets"], [12, 8, 8])
    assert not hasattr(data, "class_names")
    _, target = data.train_dataset[3]
    assert (target.dtype, target.tolist()) == (torch.float32, [1, 1, 0])
    images, targets = next(iter(data.train_dataloader()))
    assert (images.shape, targets.shape, targets.dtype) == ((4, 3, 8, 8), (4, 3), torch.float32)


@pytest.mark.parametrize("write", [";".join, json.dumps, " ; ".join])
def test_a_column_of_lists_is_labels_and_none_at_all_is_allowed(make_table, write):
    lists = [["b"], ["a", "b"], [], ["c"], ["b", "b"], ["a", "c"]] * 4
    cells = ['"' + write(labels).replace('"', '""') + '"' for labels in lists]
    data = ready(make_table("path,tags", *(f"{n}.png,{cell}" for n, cell in enumerate(cells))))
    assert (data.task, data.label_names) == ("multilabel", ["a", "b", "c"])
    given = {f"{n}.png": tuple(float(name in labels) for name in "abc") for n, labels in enumerate(lists)}
    assert samples(data) == given
    assert data.label_counts == [sum(column) for column in zip(*data.train_dataset.targets, strict=True)]
    assert len(data.val_dataset) == 5  # 20 % of 24


def test_another_separator_a_single_label_and_labels_that_are_never_trained(make_table, caplog):
    file = make_table("path,tags,fold", "0.png,a|b,train", "1.png,b,train", "2.png,c|a,val")
    data = ready(file, target="tags", separator="|", split="fold")
    assert (data.label_names, data.label_counts) == (["a", "b", "c"], [1, 2, 0])
    assert "TableData: 3 label(s) (a, b, c); images: train 2, val 1, test 0" in caplog.text
    assert "no training image has the label(s) c" in caplog.text
    single = ready(make_table("path,ill", *(f"{n}.png,{n % 2}" for n in range(8))), task="multilabel", val_fraction=0)
    assert (single.label_names, single.label_counts) == (["ill"], [4])


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_columns_of_numbers_keep_their_units_and_tell_their_mean_and_spread(make_table):
    file = make_table("path,age,height", *(f"{n}.png,{20 + n},{1.5 + n / 10}" for n in range(10)))
    data = ready(file, target=["age", "height"], image_size=8)
    assert (data.task, data.target_names) == ("number", ["age", "height"])
    ages, heights = zip(*data.train_dataset.targets, strict=True)
    assert data.target_mean == pytest.approx([fmean(ages), fmean(heights)])
    assert data.target_std == pytest.approx([pstdev(ages), pstdev(heights)])
    target = data.train_dataset[0][1]
    assert (target.dtype, target.shape) == (torch.float32, (2,))
    assert samples(data)["4.png"] == (24, 1.9)
    assert (len(data.train_dataset), len(data.val_dataset)) == (8, 2)


def test_one_column_of_numbers(make_table):
    data = ready(make_table("path,count", *(f"{n}.png,{n}" for n in range(10))), task="number", image_size=8)
    assert next(iter(data.val_dataloader()))[1].shape == (2, 1)
    assert ready(make_table("path,x", *(f"{n}.png,{n / 3}" for n in range(9)))).task == "number"


# --- splits ----------------------------------------------------------------------------------------------------------


def test_a_column_of_splits_is_kept_and_what_it_lacks_is_made(make_table, caplog):
    words = ["train"] * 8 + ["Test", "test"]
    file = make_table("path,x,fold", *(f"{n}.png,{n},{word}" for n, word in enumerate(words)))
    data = ready(file, target="x", task="number", split="fold", val_fraction=0.25)
    assert names(data.test_dataset) == ["8.png", "9.png"]
    assert (len(data.train_dataset), len(data.val_dataset), len(samples(data))) == (6, 2, 10)
    assert "val is 25% of train (seed 0)" in caplog.text


@pytest.mark.parametrize("given", [None, "fold"])
def test_groups_are_whole(make_table, given):
    rows = [f"{n}.png,{n % 3 / 2},p{n % 7},{'test' if n % 7 == 0 else 'train'}" for n in range(40)]
    file = make_table("path,x,patient,fold", *rows)
    fraction = 0.0 if given else 0.2
    data = ready(file, target="x", task="number", group="patient", split=given, test_fraction=fraction)
    patients = [
        {int(name[:-4]) % 7 for name in names(dataset)}
        for dataset in (data.train_dataset, data.val_dataset, data.test_dataset)
    ]
    assert all(patients)
    assert sum(map(len, patients)) == 7 == len(set().union(*patients))


def test_rows_of_one_image_stay_together(make_table):
    rows = [f"{n % 20}.png,{'ant' if n % 2 else 'bee'}" for n in range(60)]
    data = ready(make_table("path,label", *rows), val_fraction=0.25)  # 7.5 rows of each class: two images and a half
    assert not set(names(data.train_dataset)) & set(names(data.val_dataset))
    assert len(data.train_dataset) + len(data.val_dataset) == 60
    assert sorted(data.class_counts) == [21, 24]


def test_a_split_repeats_itself_and_another_seed_gives_another(make_table):
    file = make_table("path,x", *(f"{n}.png,{n / 3}" for n in range(50)))
    assert names(ready(file).val_dataset) == names(ready(file).val_dataset)
    assert names(ready(file).val_dataset) != names(ready(file, seed=1).val_dataset)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_what_spreadsheets_write(make_table, separator):
    """A byte order mark, CRLF, quotes, blanks, an empty line, a column without a name as pandas writes it."""
    file = make_table("path,label", *(f"Ä {n}.png,x" for n in range(4)))
    rows = [
        ["", "path", " label"],
        *([str(n), f'"Ä {n}.png"', f' "ant{separator}""{n % 2}"""'.strip()] for n in range(4)),
    ]
    text = "\r\n".join(separator.join(row) for row in [*rows, []])
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    data = ready(file, val_fraction=0, task="class")
    assert data.class_names == [f'ant{separator}"0"', f'ant{separator}"1"']
    assert names(data.train_dataset) == [f"Ä {n}.png" for n in range(4)]


def test_parquet_gives_the_same_as_csv(make_table, tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file = make_table("path,tags,x,ill", *(f"{n}.png,{'a;b' if n % 2 else ''},{n / 2},{n % 2}" for n in range(10)))
    columns = {
        "path": [f"{n}.png" for n in range(10)],
        "tags": [["a", "b"] if n % 2 else None for n in range(10)],
        "x": [n / 2 for n in range(10)],
        "ill": [n % 2 == 1 for n in range(10)],
    }
    parquet.write_table(pa.table(columns), tmp_path / "labels.parquet")
    for target in ("tags", "x", ["ill"]):
        task = "multilabel" if target == ["ill"] else None
        one, other = (ready(table, target=target, task=task) for table in (file, tmp_path / "labels.parquet"))
        assert samples(one) == samples(other)
        assert names(one.val_dataset) == names(other.val_dataset)
    columns["x"] = [None, float("nan"), *range(8)]
    parquet.write_table(pa.table(columns), tmp_path / "labels.parquet")
    with pytest.raises(ValueError, match=r"2 bad rows:\n  row 1: the target 'x' is empty\n  row 2: the target"):
        ready(tmp_path / "labels.parquet", target="x", task="number")


# --- in a Trainer ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
def test_a_run_repeats_itself_whatever_the_workers_and_goes_on_where_it_stopped(make_table, tmp_path):
    """CPU, float32, batch size 4, one thread for each worker; 0 and 2 workers."""
    file = make_table("path,x,y", *(f"{n}.png,{n / 2},{-n}" for n in range(20)))

    def run(workers, epochs=3, **options):
        module = Probe(2)
        data = TableData(file, 4, target=["x", "y"], num_workers=workers)
        save = {"callbacks": [ModelCheckpoint(tmp_path / "ckpt", filename="saved")], "enable_checkpointing": True}
        trainer(tmp_path, max_epochs=epochs, **(save if epochs == 1 else {})).fit(module, data, **options)
        return module.seen

    alone = run(0)
    assert alone == run(2)
    assert len(alone) == 12
    assert run(0, epochs=1) == alone[:4]
    assert run(2, ckpt_path=tmp_path / "ckpt" / "saved.ckpt") == alone[4:]


def test_decoded_images_are_kept(make_table, monkeypatch, tmp_path):
    monkeypatch.setenv("LIT_TRANSFER_CACHE", str(tmp_path / "cache"))
    file = make_table("path,x", *(f"{n}.png,{n / 3}" for n in range(6)))
    data = ready(file, keep_decoded=True, image_size=8)
    list(data.val_dataloader())
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == len(data.val_dataset) == 1


def test_a_picture_of_a_batch_says_the_targets(make_table):
    file = make_table("path,a,b,x", *(f"{n}.png,{n % 2},0,{n / 3}" for n in range(8)))
    labels = ready(file, target=["a", "b"], image_size=8, augment="none")
    assert {axes.get_title() for axes in labels.plot_batch().axes} == {"a", "none"}
    numbers = ready(file, target="x", image_size=8).plot_batch(split="val")
    assert all(axes.get_title().startswith("x ") for axes in numbers.axes)


# --- real photos -----------------------------------------------------------------------------------------------------


def test_the_ants_and_bees_of_the_tutorial_from_a_table(real, tmp_path):
    root = real / "data" / "hymenoptera_data"
    rows = [
        f"{path.relative_to(root).as_posix()},{path.parts[-2]},{path.parts[-3]}"
        for path in sorted(root.rglob("*"))
        if is_image(path)
    ]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,split", *rows]))
    data = ready(tmp_path / "labels.csv", root=root, target="label", split="split")
    assert (data.class_names, data.class_counts, len(data.val_dataset)) == (["ants", "bees"], [123, 121], 153)


def test_classes_can_be_balanced_and_nothing_else(make_table):
    table = make_table("path,label", *(f"{n}.png,{'rare' if n < 3 else 'often'}" for n in range(12)))
    data = TableData(table, 4, sampling="balanced", val_fraction=0, image_size=8, num_workers=0)
    data.setup()
    targets = torch.cat([targets for _, targets in data.train_dataloader()]).tolist()
    assert targets.count(data.class_names.index("rare")) == 6
    for task, cells in (("number", "1.5"), ("multilabel", "a;b")):
        rows = [f"{n}.png,{cells if n % 2 else cells[0]}" for n in range(8)]
        data = TableData(make_table("path,y", *rows, name=f"{task}.csv"), task=task, sampling="balanced")
        with pytest.raises(ValueError, match=r"data.sampling='balanced' needs one class for each image; the data has"):
            data.setup()
