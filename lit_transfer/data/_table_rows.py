"""The rows of a table as samples: what may not fall into two splits, and how splits are made."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, get_args

from lit_transfer.data._group_split import group_split
from lit_transfer.data._scan import SPLIT_NAMES, Split
from lit_transfer.data._split import check_enough, stratified_split
from lit_transfer.data._table import Table
from lit_transfer.data._table_faults import Faults
from lit_transfer.data._targets import Classes, Labels, Numbers, Targets

SPLITS: tuple[Split, ...] = get_args(Split)


def read_groups(cells: Sequence[Any], faults: Faults) -> list[str]:
    """Read the group of each row, noting those that have none."""
    for row, cell in enumerate(cells):
        if cell == "":
            faults.add(row, "the group is empty", "Name the group of each row; one of its own where it has none.")
    return [str(cell) for cell in cells]


@dataclass(frozen=True)
class Rows:
    """The rows of a table, read.

    Attributes:
        table: Where they stand.
        keys: Path of each row's image below the root.
        groups: Group of each row; None where there are no groups.
        targets: What the targets are.
        values: Target of each row.
    """

    table: Table
    keys: Sequence[str]
    groups: Sequence[str] | None
    targets: Targets
    values: Sequence[Any]

    def given_splits(self, column: str | None, faults: Faults) -> dict[Split, list[int]]:
        """Give the rows of each split that the table names; all are for training where it names none.

        Raises:
            ValueError: If no row is for training.
        """
        if column is None:
            return {"train": list(range(len(self.table)))}
        of = _read_splits(self.table.column(column, "data.split"), faults)
        self._check_agree("image", self.keys, "split", of, "Leave each image and group in one split.", faults)
        if self.groups is not None:
            self._check_agree("group", self.groups, "split", of, "Leave each image and group in one split.", faults)
        rows = {split: [row for row, name in enumerate(of) if name == split] for split in SPLITS}
        if not rows["train"]:
            faults.raise_any()
            raise ValueError(f"data.split={column!r} has no row of train: there is nothing to train on.")
        return {split: found for split, found in rows.items() if found}

    def check_same_images(self, faults: Faults) -> None:
        """Note rows that say of an image what an earlier row does not."""
        self._check_agree("image", self.keys, "target", self.values, "Keep one row for each image.", faults)
        if self.groups is not None:
            self._check_agree("image", self.keys, "group", self.groups, "Keep one row for each image.", faults)

    def check_learnable(self, splits: dict[Split, list[int]], faults: Faults) -> list[str]:
        """Note rows whose class no training row has, and tell the user of labels that none has.

        Raises:
            ValueError: If a number is the same in all training rows.
        """
        train = [self.values[row] for row in splits["train"]]
        if isinstance(self.targets, Classes):
            self._check_classes(set(train), splits, faults)
        elif isinstance(self.targets, Labels):
            counts = self.targets.told(train)["label_counts"]
            never = [name for name, count in zip(self.targets.names, counts, strict=True) if not count]
            return [f"no training image has the label(s) {', '.join(never)}"] if never else []
        else:
            for name, std in zip(self.targets.names, self.targets.told(train)["target_std"], strict=True):
                if std == 0:
                    raise ValueError(f"{name!r} is the same in all training rows: leave it out of data.target.")
        return []

    def cut(self, which: Sequence[int], wanted: dict[Split, float], *, seed: int) -> list[list[int]]:
        """Cut rows into parts, the same at each run with the same seed; rows of an image or group stay together.

        Args:
            which: The rows.
            wanted: Share of each part; classes and labels are cut in proportion.
            seed: Another seed gives another split.

        Returns:
            Places in `which` for each part, and last of the rest.

        Raises:
            ValueError: If there are too few rows or groups.
        """
        keys, values = [self.keys[row] for row in which], [self.values[row] for row in which]
        fractions = list(wanted.values())
        classes = isinstance(self.targets, Classes)
        if classes:
            check_enough(values, self.targets.names, list(wanted), "data.table", "a column data.split")
            if self.groups is None and len(set(keys)) == len(keys):
                return stratified_split(keys, values, fractions, seed=seed)  # as for folders of the same images
        together = keys if self.groups is None else [self.groups[row] for row in which]
        try:
            kinds = [self._kinds(value) for value in values]
            return group_split(together, kinds, fractions, seed=seed, keep=classes)
        except ValueError as error:
            raise ValueError(
                f"no {' and '.join(wanted)} rows can be taken out of {str(self.table.file)!r}: {error}. Add rows, name "
                f"the splits in a column data.split, or set data.{list(wanted)[-1]}_fraction=0."
            ) from error

    def _kinds(self, value: Any) -> Sequence[Hashable]:
        if isinstance(self.targets, Classes):
            return [value]
        return [] if isinstance(self.targets, Numbers) else [place for place, holds in enumerate(value) if holds]

    def _check_classes(self, train: set[int], splits: dict[Split, list[int]], faults: Faults) -> None:
        for split, rows in splits.items():
            for row in rows:
                if self.values[row] not in train:
                    what = f"class {self.targets.names[self.values[row]]!r} is in {split} and in no row of train"
                    faults.add(row, what, "Give some of its rows to train, or leave it out.")

    def _check_agree(
        self, of: str, keys: Sequence[str], what: str, values: Sequence[Any], mend: str, faults: Faults
    ) -> None:
        """Note each row whose value is another than that of the first row with the same key."""
        first: dict[str, int] = {}
        for row, key in enumerate(keys):
            before = first.setdefault(key, row)
            if values[row] != values[before]:
                faults.add(row, f"{of} {key!r} has another {what} than in {self.table.place(before)}", mend)


def _read_splits(cells: Sequence[Any], faults: Faults) -> list[Split]:
    """Read the words of a column, in small or capital letters; bad ones count as train."""
    words = [str(cell).lower() for cell in cells]
    for row, word in enumerate(words):
        if word not in SPLIT_NAMES:
            near = get_close_matches(word, SPLIT_NAMES, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            what = f"the split is {cells[row]!r}{hint}" if word else "the split is empty"
            faults.add(row, what, f"Write one of {', '.join(SPLIT_NAMES)}.")
    return [SPLIT_NAMES.get(word, "train") for word in words]
