"""Whether what comes before the frozen part is random: the same samples, drawn twice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["FirstDraw", "is_random", "probe"]


def probe(length: int) -> list[int]:
    """Give the indices of the samples of a dataset that are drawn twice: 64 that are spread evenly over it, or all.

    Of a flip with probability 0.5, all 64 miss with probability 2 ** -64.
    """
    count = min(length, 64)
    return [number * length // count for number in range(count)]


def is_random(draw: Callable[[int], Tensor], draws: int = 8) -> bool:
    """Return whether several draws of one batch differ in a single value.

    Args:
        draw: Gives, for the number of the draw, what the frozen part takes. It should start its random generators
            otherwise in each draw.
        draws: How many.
    """
    first = draw(0).clone()
    return not all(torch.equal(first, draw(number)) for number in range(1, draws))


class FirstDraw:
    """What samples were when they were drawn first, to be compared with what they are in another draw."""

    def __init__(self) -> None:
        self._digests: dict[int, bytes] = {}

    def note(self, indices: Sequence[int], images: Tensor) -> None:
        """Take in the images (len(indices), ...) of some samples."""
        self._digests.update(zip(indices, map(_digest, images), strict=True))

    def differs(self, indices: Sequence[int], images: Tensor) -> bool:
        """Return whether one of these samples was noted and is another image now."""
        pairs = zip(indices, images, strict=True)
        return any(index in self._digests and self._digests[index] != _digest(image) for index, image in pairs)


def _digest(image: Tensor) -> bytes:
    plain = image.detach().cpu().contiguous().flatten()
    return hashlib.blake2b(plain.view(torch.uint8).numpy().data, digest_size=16).digest()
