from pathlib import Path

import pytest

from lit_transfer.data._scan import check_same_classes, find_splits, scan_classes


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_split_folders_are_found_under_any_of_their_names(make_folder, val):
    root = make_folder({"train/ants": 1, f"{val}/ants": 1, "test/ants": 1, "annotations/old": 1})
    assert find_splits(root) == {"train": root / "train", "val": root / val, "test": root / "test"}


def test_class_folders_may_lie_in_root_and_one_may_be_called_train(make_folder):
    root = make_folder({"train": 1, "car": 1})
    assert find_splits(root) == {"train": root}
    assert list(scan_classes(root).images) == ["car", "train"]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"train/a": 1, "val/a": 1, "valid/a": 1}, "one split under several names: val, valid"),
        ({"val/a": 1, "test/a": 1}, "expected class folders in train/ .which is missing"),
        ({"train": 1, "val": 1}, "expected class folders in train/ .it has none"),
    ],
)
def test_split_folders_that_cannot_be_used_are_refused(make_folder, counts, message):
    with pytest.raises(ValueError, match=rf"data\.root.*{message}"):
        find_splits(make_folder(counts))


def test_no_such_folder_and_a_file_in_its_place(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data\.root must be a folder .*'.*nowhere' there is nothing"):
        find_splits(tmp_path / "nowhere")
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(FileNotFoundError, match=r"data\.root must be a folder .* there is a file"):
        find_splits(tmp_path / "photo.jpg")


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, r"data\.root: .*at least two classes; got no folder\."),
        ({"": 2}, r"data\.root: .*got no folder, and 2 images that lie in no class folder"),
        ({"ants": 1}, r"data\.root: .*at least two classes; got one folder, 'ants'"),
        ({"ants": 1, "bees": 0}, r"class folder '.*bees' in data\.root holds no image: .* got nothing"),
    ],
)
def test_folders_without_two_classes_of_images_are_refused(make_folder, counts, message):
    with pytest.raises(ValueError, match=message):
        scan_classes(make_folder(counts))


def test_a_class_folder_with_other_files_only_says_how_many(make_folder):
    root = make_folder({"ants": 1, "bees": 0})
    (root / "bees" / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"bees' in data\.root holds no image: .*\.jpg.* got 1 other file\(s\)"):
        scan_classes(root)


def test_what_is_no_image_is_skipped_and_told(make_folder):
    root = make_folder({"ants": 2, "bees/queens/old": 1, "bees": 1, ".ipynb_checkpoints": 1, "__MACOSX": 1})
    strays = [root / "ants" / name for name in ("._0.png", "Thumbs.db", "missing.gif")]
    for path in [*strays, root / "loose.jpg", root / "README.txt"]:
        path.touch()
    found = scan_classes(root)
    assert {name: len(files) for name, files in found.images.items()} == {"ants": 2, "bees": 2}
    assert found.skipped == sorted([*strays, root / "loose.jpg"])


def test_classes_that_differ_are_named():
    check_same_classes(["a", "b"], ["b", "a"], "val")
    with pytest.raises(ValueError, match=r"data\.root .* than in val: only in train: wasps; only in val: Bees, bee\."):
        check_same_classes(["ants", "wasps"], ["ants", "bee", "Bees"], "val")
    with pytest.raises(ValueError, match=r"only in train: wasps\. Expected the same"):
        check_same_classes(["ants", "wasps"], ["ants"], "test")


def test_the_order_of_the_file_system_does_not_matter(make_folder, monkeypatch):
    root = make_folder({"ants": 5, "bees": 5})
    expected = scan_classes(root)
    listing = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: reversed(list(listing(path))))
    monkeypatch.setattr("os.walk", lambda path, **_: [(path, [], [f"{n}.png" for n in (3, 0, 4, 2, 1)])])
    assert scan_classes(root) == expected
    assert list(scan_classes(root).images) == list(expected.images)
