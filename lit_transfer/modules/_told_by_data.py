"""What the data tells a module: the datamodule, or the dataset of a plain DataLoader."""

from collections.abc import Iterator, Sized
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import Subset


def told(trainer: Trainer, *names: str) -> Any:
    """Give the first attribute of these that the datamodule has, else the training set, else what that is a part of.

    Returns:
        Its value; None where it is missing, or empty.
    """
    for place in _places(trainer):
        for name in names:
            value = getattr(place, name, None)
            if value is not None and (not isinstance(value, Sized) or len(value)):
                return value
    return None


def training_size(trainer: Trainer) -> int | None:
    """Give the number of training examples, or None if nobody can tell it without reading them."""
    dataset = _training_set(trainer)
    return len(dataset) if isinstance(dataset, Sized) else None


def training_targets(trainer: Trainer) -> Tensor | None:
    """Give the targets (N, columns) of the training set where it holds them as such, so that no image is read.

    That is so for datasets with `targets`, as torchvision's have them, for a `TensorDataset`, and for parts of these.
    """
    return _targets(_training_set(trainer))


def _places(trainer: Trainer) -> Iterator[Any]:
    if (datamodule := getattr(trainer, "datamodule", None)) is not None:
        yield datamodule
        return
    dataset = _training_set(trainer)
    while dataset is not None:
        yield dataset
        dataset = getattr(dataset, "dataset", None)  # torch.utils.data.Subset and its like


def _training_set(trainer: Trainer) -> Any:
    """Find the training set.

    In `setup` no loader is built yet, and Lightning has no public way to what `fit` was given; its private
    `_data_source` is read here and nowhere else in the modules.
    """
    if (datamodule := getattr(trainer, "datamodule", None)) is not None:
        return getattr(datamodule, "train_dataset", None)
    return getattr(trainer.fit_loop._data_source.instance, "dataset", None)


def _targets(dataset: Any) -> Tensor | None:
    if isinstance(dataset, Subset):
        whole = _targets(dataset.dataset)
        return None if whole is None else whole[torch.as_tensor(dataset.indices)]
    found = getattr(dataset, "targets", None)
    if found is None:
        found = getattr(dataset, "tensors", (None,))[-1]  # of a TensorDataset
    if found is None:
        return None
    targets = torch.as_tensor(found, dtype=torch.float64)
    return targets.reshape(len(targets), -1)


def listed(names: list[str] | None, most: int = 8) -> str:
    """Write names for an error, the first few of many."""
    shown = ", ".join((names or [])[:most])
    return shown if len(names or []) <= most else f"{shown}, ... ({len(names or [])} in all)"
