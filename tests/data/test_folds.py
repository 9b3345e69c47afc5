"""Folds: each sample in one, kinds in proportion, groups whole; and the datamodules that are cut into them."""

import random
from collections import Counter
from pathlib import Path

import pytest

from lit_transfer.data import DigitsData, ImageFolderData, TableData
from lit_transfer.data._folds import assign_folds


@pytest.mark.parametrize("seed", range(4))
def test_each_class_and_each_fold_differ_by_one_at_most(seed: int) -> None:
    sizes = [7, 23, 12, 31, 5]
    kinds = [[number] for number, size in enumerate(sizes) for _ in range(size)]
    names = [f"{place}.png" for place in range(len(kinds))]
    of = assign_folds(names, kinds, 5, seed=seed)
    for number, size in enumerate(sizes):
        counts = Counter(fold for fold, kind in zip(of, kinds, strict=True) if kind == [number])
        assert sorted(counts.values()) == sorted(size // 5 + (place < size % 5) for place in range(5))
    assert max(Counter(of).values()) - min(Counter(of).values()) <= 1


def test_the_order_of_the_samples_does_not_matter_and_the_seed_does() -> None:
    samples = [(f"{place}.png", [place % 3]) for place in range(30)]
    shuffled = random.Random(0).sample(samples, len(samples))
    found = []
    for given in (samples, shuffled):
        names, kinds = zip(*given, strict=True)
        found.append(dict(zip(names, assign_folds(names, kinds, 3, seed=0), strict=True)))
    assert found[0] == found[1]
    names, kinds = zip(*samples, strict=True)
    assert assign_folds(names, kinds, 3, seed=1) != list(found[0].values())


def test_groups_stay_whole_and_labels_in_proportion() -> None:
    draw = random.Random(0)
    groups = [f"patient{draw.randrange(40)}" for _ in range(400)]
    kinds = [[label for label, rate in enumerate((0.5, 0.2, 0.1)) if draw.random() < rate] for _ in groups]
    of = assign_folds(groups, kinds, 5, seed=0)
    assert all(len({of[place] for place, name in enumerate(groups) if name == one}) == 1 for one in set(groups))
    for label in range(3):
        counts = Counter(fold for fold, labels in zip(of, kinds, strict=True) if label in labels)
        assert max(counts.values()) <= 1.35 * min(counts.values())


@pytest.mark.parametrize(("folds", "told"), [(1, "at least two"), (9, "only 8 images or groups")])
def test_a_wrong_number_of_folds(folds: int, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        assign_folds([str(place) for place in range(8)], [[0]] * 8, folds, seed=0)


def cut(make: object, folds: int) -> list[tuple[set[str], set[str]]]:
    """Names of the train and val samples of each fold."""
    found = []
    for fold in range(folds):
        data = make()  # type: ignore[operator]
        data.take_fold(fold, folds)
        data.setup()
        train = {data.name_of(item) for item, _ in data.train_dataset.samples}
        val = {data.name_of(item) for item, _ in data.val_dataset.samples}
        assert len(train) + len(val) == len(data.train_dataset) + len(data.val_dataset)
        found.append((train, val))
    return found


def check_partition(found: list[tuple[set[str], set[str]]], everything: set[str]) -> None:
    assert sum(len(val) for _, val in found) == len(everything)
    assert set().union(*(val for _, val in found)) == everything
    assert all(train == everything - val for train, val in found)


def test_folders_of_train_and_val_are_cut_together_and_test_stays_aside(make_folder) -> None:
    root = make_folder({f"{split}/{name}": 5 for split in ("train", "val", "test") for name in ("ants", "bees")})
    everything = {path.relative_to(root).as_posix() for path in root.rglob("*.png") if "test" not in path.parts}
    check_partition(cut(lambda: ImageFolderData(root, num_workers=0), 5), everything)
    data = ImageFolderData(root, num_workers=0)
    data.take_fold(0, 5)
    data.setup()
    assert len(data.test_dataset or []) == 10
    assert data.class_counts == [8, 8]


def test_a_flat_folder_is_cut_alike_wherever_it_lies(make_folder) -> None:
    first, second = (make_folder({"ants": 6, "bees": 4}, root=name) for name in ("here", "there"))
    one, other = (cut(lambda root=root: ImageFolderData(root), 3) for root in (first, second))
    assert one == other
    check_partition(one, {path.relative_to(first).as_posix() for path in first.rglob("*.png")})


def test_digits_are_cut_too() -> None:
    found = cut(lambda: DigitsData([0, 1], per_class=10), 2)
    check_partition(found, found[0][0] | found[0][1])


def test_rows_of_a_group_or_of_an_image_stay_together(make_table) -> None:
    rows = [f"{place}.png,{'ab'[place % 2]},p{place // 3}" for place in range(24)]
    table = make_table("path,label,patient", *rows, rows[0])
    patients = dict(zip((f"{place}.png" for place in range(24)), (place // 3 for place in range(24)), strict=True))
    for fold in range(4):
        data = TableData(table, target="label", group="patient")
        data.take_fold(fold, 4)
        data.setup()
        held = {patients[row["path"]] for row in data.val_rows()}
        assert held.isdisjoint(patients[data.name_of(path)] for path, _ in data.train_dataset.samples)
    data = TableData(table, target="label", image="path", group=None)
    data.take_fold(0, 4)
    data.setup()
    names = [data.name_of(path) for path, _ in data.train_dataset.samples]
    assert names.count("0.png") in (0, 2)


def test_numbers_are_cut_by_their_order_and_rows_name_them(make_table) -> None:
    table = make_table("path,age,size", *(f"{place}.png,{place}.5,{-place}" for place in range(40)))
    for fold in range(4):
        data = TableData(table, target=["age", "size"])
        data.take_fold(fold, 4)
        data.setup()
        ages = [row["target(age)"] for row in data.val_rows()]
        assert len(ages) == 10
        assert {int(age // 4) for age in ages} == set(range(10))  # one of each tenth


def test_more_folds_than_samples_of_a_class_names_it(make_folder) -> None:
    data = ImageFolderData(make_folder({"ants": 9, "bees": 3}))
    data.take_fold(0, 4)
    with pytest.raises(ValueError, match=r"class 'bees' is in 3 image.*Give at most 3 folds"):
        data.setup()


def test_take_fold_refuses_a_fold_that_is_not_there_and_data_that_is_split(make_folder) -> None:
    data = ImageFolderData(make_folder({"ants": 4, "bees": 4}))
    for fold, folds in ((2, 2), (-1, 3), (0, 1)):
        with pytest.raises(ValueError, match=f"fold={fold} of folds={folds}"):
            data.take_fold(fold, folds)
    data.setup()
    with pytest.raises(ValueError, match="too late"):
        data.take_fold(0, 2)


def test_reseed_changes_the_order_and_not_the_split(make_folder) -> None:
    root: Path = make_folder({"ants": 8, "bees": 8})
    made = []
    for seed in (0, 1):
        data = ImageFolderData(root, 16, augment="none", image_size=16, num_workers=0)
        data.reseed(seed)
        data.setup()
        made.append((data.train_dataset.samples, next(iter(data.train_dataloader()))[1].tolist()))
    assert made[0][0] == made[1][0]
    assert made[0][1] != made[1][1]
