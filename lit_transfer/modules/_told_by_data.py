"""Who tells the classes: the datamodule, or the dataset of a plain DataLoader."""

from typing import Any

from lightning.pytorch import Trainer


def classes_source(trainer: Trainer) -> Any:
    """Give the object whose `class_names` or `classes` are meant: the datamodule, else the training set.

    In `setup` no loader is built yet, and Lightning has no public way to what `fit` was given; its private
    `_data_source` is read here and nowhere else in the modules.
    """
    datamodule = getattr(trainer, "datamodule", None)
    if datamodule is not None:
        return datamodule
    dataset = getattr(trainer.fit_loop._data_source.instance, "dataset", None)
    while dataset is not None and not hasattr(dataset, "classes") and hasattr(dataset, "dataset"):
        dataset = dataset.dataset  # torch.utils.data.Subset and its like
    return dataset


def agreed_number(num_classes: int | None, class_names: list[str] | None) -> int | None:
    """Give the number of classes that both arguments agree on.

    Raises:
        ValueError: If they do not, or if it is less than two.
    """
    if num_classes is not None and class_names is not None and num_classes != len(class_names):
        raise ValueError(f"num_classes={num_classes}, but class_names has {len(class_names)} names: leave one out.")
    number = num_classes if num_classes is not None else (len(class_names) if class_names is not None else None)
    if number is not None and number < 2:
        raise ValueError(f"num_classes={number}: a classifier needs at least two classes.")
    return number


def listed(names: list[str] | None, most: int = 8) -> str:
    """Write names for an error, the first few of many."""
    shown = ", ".join((names or [])[:most])
    return shown if len(names or []) <= most else f"{shown}, ... ({len(names or [])} in all)"
