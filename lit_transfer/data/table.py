"""A table of image paths with their targets, CSV or Parquet, as a datamodule."""

from functools import partial
from pathlib import Path
from typing import ClassVar

from lit_transfer.data._image_file_data import ImageFileData
from lit_transfer.data._labelled_image_data import Collection
from lit_transfer.data._sampler import Sampling
from lit_transfer.data._table import Table, read_table
from lit_transfer.data._table_faults import Faults
from lit_transfer.data._table_images import find_images
from lit_transfer.data._table_rows import Rows, read_groups
from lit_transfer.data._table_targets import TASKS, Task, find_task, read_targets
from lit_transfer.data._transforms import Augment


class TableData(ImageFileData):
    """Images whose paths and targets stand in a table, made ready for the module being trained.

    The target is a class, any number of labels, or one or several numbers: see `task`. All rows are checked in `setup`,
    and everything that is wrong with them is told at once, by line. Where the table says nothing of the splits, they
    are made, the same ones at every run with the same seed.

    See LabelledImageData for what `setup` sets, and `plot_batch` for a look at a batch.
    """

    _test_images: ClassVar[str] = ", or rows of test in the column data.split"

    def __init__(
        self,
        table: str | Path,
        batch_size: int = 32,
        *,
        root: str | Path | None = None,
        image: str = "path",
        target: list[str] | str | None = None,
        task: Task | None = None,
        names: list[str] | None = None,
        separator: str = ";",
        split: str | None = None,
        group: str | None = None,
        augment: Augment = "default",
        sampling: Sampling = "shuffle",
        image_size: int | None = None,
        val_fraction: float = 0.2,
        test_fraction: float = 0.0,
        seed: int = 0,
        num_workers: int | None = None,
        pin_memory: bool | None = None,
        persistent_workers: bool | None = None,
        verify: bool = True,
        keep_decoded: bool = False,
    ) -> None:
        """Remember where the table is; nothing is read before `setup`.

        Args:
            table: A CSV file (UTF-8; a heading; comma, semicolon or tab) or a Parquet file (needs pyarrow).
            batch_size: Images in a batch, on each device.
            root: Folder where the paths start, and below which all must lie; None for the folder of the table.
            image: Column of the paths.
            target: Column of the target, or several; None for the only column that is left.
            task: `"class"`: one column with the class of each image. `"multilabel"`: several columns of 0 and 1, one
                for each label, or one with a list of labels, which may be empty. `"number"`: one or several columns of
                numbers. None to find it from the cells where that is certain.
            names: The classes, or the labels of a column with lists, in the order of their numbers; any other in the
                table is an error. None for those of the table, sorted.
            separator: What stands between the labels of a list, if that is not JSON.
            split: Column of train, val (valid, validation) and test; None to make the splits. Where the column has no
                val, that is made out of train.
            group: Column of what must not fall into two splits: a patient, a place, a day.
            augment: As in ImageFolderData.
            sampling: As in ImageFolderData; `"balanced"` is for classes.
            image_size: Side of the images in pixels; None for what the module's preprocessing says, 224 if it has none.
            val_fraction: Share of the training rows that becomes the validation images if the table names none, of
                each class or label alike; 0 for none.
            test_fraction: The same for the test images.
            seed: Of the split, the order and the augmentation.
            num_workers: Processes that load images; None to choose: none for up to 128 images, else up to 4.
            pin_memory: Load into page-locked memory; None for yes if there is CUDA.
            persistent_workers: Keep the processes from epoch to epoch; None for yes if there are any.
            verify: Open each file's header in `setup`, so that a broken file is found before training starts.
            keep_decoded: Keep each decoded image on disk, as in ImageFolderData.
        """
        super().__init__(
            batch_size,
            augment=augment,
            sampling=sampling,
            image_size=image_size,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            seed=seed,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=persistent_workers,
            verify=verify,
            keep_decoded=keep_decoded,
        )
        if task is not None and task not in TASKS:
            raise ValueError(f"data.task must be one of {TASKS}, or None to find it; got {task!r}.")
        if not separator:
            raise ValueError("data.separator must not be empty.")
        self.table, self.root = Path(table), Path(table).parent if root is None else Path(root)
        self.image, self.target, self.split, self.group = image, target, split, group
        self.task, self.names, self.separator = task, names, separator

    def collect(self) -> Collection:
        """Read the table, check all of its rows, and split them where needed.

        Raises:
            FileNotFoundError: If there is no table, or root is no folder.
            ImportError: If the table is Parquet and pyarrow is not installed.
            ValueError: If the columns are not as expected, or rows are bad: each with its line.
        """
        table = read_table(self.table)
        if not self.root.is_dir():
            raise FileNotFoundError(f"data.root must be a folder of images; at {str(self.root)!r} there is none.")
        faults = Faults(table)
        paths = find_images(table.column(self.image, "data.image"), self.root, faults, verify=self.verify)
        columns = self._target_columns(table)
        self.task = self.task or find_task(table, columns, self.separator)
        targets, values = read_targets(table, columns, self.task, self.names, self.separator, faults)
        keys = [self.name_of(path) for path in paths]
        groups = None if self.group is None else read_groups(table.column(self.group, "data.group"), faults)
        rows = Rows(table, keys, groups, targets, values)
        given = rows.given_splits(self.split, faults)
        rows.check_same_images(faults)
        faults.raise_any()
        splits, notes = self.fill_splits(
            given, partial(rows.cut, seed=self.seed), "train" if groups is None else "train, groups whole"
        )
        notes += rows.check_learnable(splits, faults)
        faults.raise_any()
        samples = {split: [(paths[row], values[row]) for row in members] for split, members in splits.items()}
        return Collection(targets, samples, notes, dict(zip(paths, groups or [], strict=False)))

    def _target_columns(self, table: Table) -> list[str]:
        """Give the columns of the target, which are no others' columns."""
        taken = {self.image, self.split, self.group}
        columns = [self.target] if isinstance(self.target, str) else self.target
        if columns is None:
            columns = [name for name in table.columns if name not in taken]
            if len(columns) != 1:
                found = ", ".join(map(repr, columns)) or "none"
                raise ValueError(f"data.target must name the column(s) of the target; those left are: {found}.")
        for name in columns:
            table.column(name, "data.target")
        if not columns or taken & set(columns) or len(set(columns)) < len(columns):
            raise ValueError(f"data.target={columns}: expected columns that are named once, and for nothing else.")
        return list(columns)
