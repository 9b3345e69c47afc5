"""Whether what comes before the frozen part is random: the same samples, drawn twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

__all__ = ["PROBED", "is_random", "probe"]

PROBED = 64  # samples; of a flip with probability 0.5 all miss with probability 2 ** -64


def probe(length: int, count: int = PROBED) -> list[int]:
    """Give the indices of samples spread evenly over a dataset, all of them if there are no more than `count`."""
    count = min(length, count)
    return [number * length // count for number in range(count)]


def is_random(draw: Callable[[int], Iterable[Tensor]]) -> bool:
    """Return whether two draws differ in a single value.

    Args:
        draw: Gives, for the number of the draw (0 or 1), what the frozen part takes for some samples, in batches. It
            should start its random generators otherwise in each draw.
    """
    first = [batch.detach().cpu().clone() for batch in draw(0)]
    second = list(draw(1))
    return len(first) != len(second) or not all(
        one.shape == other.shape and torch.equal(one, other.detach().cpu())
        for one, other in zip(first, second, strict=True)
    )
