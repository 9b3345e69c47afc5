"""What the targets of images are: a class, labels that each hold or not, or numbers."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Classes:
    """One class for each image; a target is its number, which the dataset gives as it is.

    Attributes:
        names: Name of each class, in the order of their numbers.
    """

    names: list[str]

    def told(self, train: Sequence[int]) -> dict[str, Any]:
        """Give what modules ask a datamodule for, from the targets of the training images."""
        counts = Counter(train)
        per_class = [counts[number] for number in range(len(self.names))]
        return {"class_names": self.names, "num_classes": len(self.names), "class_counts": per_class}

    def title(self, target: Tensor) -> str:
        """Say a target () in words."""
        return self.names[int(target)]

    def columns(self, target: int) -> dict[str, Any]:
        """Give the columns of a table for a target."""
        return {"target": self.names[target]}

    def __str__(self) -> str:
        return f"{len(self.names)} classes ({_few(self.names)})"


@dataclass(frozen=True)
class Labels:
    """Any number of labels for each image; a target has 1.0 for each that holds, else 0.0, in L places.

    Attributes:
        names: Name of each of the L labels.
    """

    names: list[str]

    def told(self, train: Sequence[Sequence[float]]) -> dict[str, Any]:
        """Give what modules ask a datamodule for, from the targets of the training images."""
        return {"label_names": self.names, "label_counts": [int(sum(column)) for column in zip(*train, strict=True)]}

    def title(self, target: Tensor) -> str:
        """Say a target (L,) in words."""
        return ", ".join(name for name, holds in zip(self.names, target.tolist(), strict=True) if holds) or "none"

    def columns(self, target: Sequence[float]) -> dict[str, Any]:
        """Give the columns of a table for a target: the labels that hold."""
        return {"target": "; ".join(name for name, holds in zip(self.names, target, strict=True) if holds)}

    def __str__(self) -> str:
        return f"{len(self.names)} label(s) ({_few(self.names)})"


@dataclass(frozen=True)
class Numbers:
    """One or several numbers for each image; a target has T of them, in their own units.

    Attributes:
        names: Name of each of the T numbers.
    """

    names: list[str]

    def told(self, train: Sequence[Sequence[float]]) -> dict[str, Any]:
        """Give what modules ask a datamodule for; `target_std` is that of the training images themselves (1/N)."""
        columns = list(zip(*train, strict=True))
        mean, std = [fmean(column) for column in columns], [pstdev(column) for column in columns]
        return {"target_names": self.names, "target_mean": mean, "target_std": std}

    def title(self, target: Tensor) -> str:
        """Say a target (T,) in words."""
        return "\n".join(f"{name} {value:.4g}" for name, value in zip(self.names, target.tolist(), strict=True))

    def columns(self, target: Sequence[float]) -> dict[str, Any]:
        """Give the columns of a table for a target: one for each number."""
        if len(self.names) == 1:
            return {"target": target[0]}
        return {f"target({name})": value for name, value in zip(self.names, target, strict=True)}

    def __str__(self) -> str:
        return f"{len(self.names)} number(s) ({_few(self.names)})"


Targets = Classes | Labels | Numbers


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
