"""What every stage of a backbone gives, as one vector for each image, in a single run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lit_transfer.features._boundary import Boundary, check_still
from lit_transfer.features._checked_copy import apart, bound_of
from lit_transfer.features._pieces import pieces
from lit_transfer.features._working_copy import WorkingCopy
from lit_transfer.stages import first_tensor, noted, place_axes, stages_of

__all__ = ["PooledStages", "pooled"]


def pooled(output: Any) -> Tensor | None:
    """Average the output of a stage over all but batch and channels.

    Feature maps (N, C, H, W) are averaged over pixels, also with the channels last, as Swin has them, which shows where
    the first two sides are equal and the last is another; tokens (N, T, C) over tokens, the class token counting as one
    of them; vectors (N, C) stay as they are.

    Returns:
        (N, C) in float32; None for what is none of these.
    """
    tensor = first_tensor(output)
    if tensor is None or tensor.ndim not in (2, 3, 4) or not tensor.is_floating_point():
        return None
    axes = [axis + 1 for axis in place_axes(tensor.shape[1:])]
    return tensor.float().mean(axes) if axes else tensor.float()


class PooledStages:
    """Gives, for a batch of images, a vector at the end of each stage; of the last stage, what the backbone gives.

    It runs on a copy made for inference where that gives the same up to 1e-4 of the largest value, else on the
    backbone itself.

    Attributes:
        widths: Length of the vector of each stage; stages whose output is no feature map, tokens or vector are left
            out.
    """

    def __init__(self, backbone: nn.Module, images: Tensor) -> None:
        """Look at what crosses the boundaries.

        Args:
            backbone: The backbone, in eval mode.
            images: A few real images as it takes them, (N, C, H, W).

        Raises:
            ValueError: It normalises by the batch, so that the features of an image depend on the others.
        """
        whole = Boundary("", (), ("all",))
        check_still(backbone, whole)
        stages = [stage for stage in stages_of(backbone) if stage.name != "head" and stage.modules]
        self._units = {stage.name: stage.modules[-1] for stage in stages[:-1]} | {stages[-1].name: ""}
        self._run: Callable[[Tensor], Any] = backbone
        self._hooked = backbone
        vectors = self._vectors(images)
        self.widths = {
            name: vector.shape[1]
            for name, vector in vectors.items()
            if vector is not None and vector.shape[0] == len(images)
        }
        self._run, self._hooked = self._faster(backbone, whole, images, vectors)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Give the vectors (N, widths[stage]) of a batch of images."""
        vectors = self._vectors(images)
        return {name: vector for name in self.widths if (vector := vectors[name]) is not None}

    def _vectors(self, images: Tensor) -> dict[str, Tensor | None]:
        found = [self._vectors_of(piece) for piece in pieces(images)]
        return {name: _joined([vectors[name] for vectors in found]) for name in self._units}

    def _vectors_of(self, images: Tensor) -> dict[str, Tensor | None]:
        units = {name: unit for name, unit in self._units.items() if unit}
        with noted(self._hooked, units, lambda _, output: pooled(output)) as seen:
            output = self._run(images)
        return {name: seen.get(name) if unit else pooled(output) for name, unit in self._units.items()}

    def _faster(
        self, backbone: nn.Module, whole: Boundary, images: Tensor, expected: dict[str, Tensor | None]
    ) -> tuple[Callable[[Tensor], Any], nn.Module]:
        """Return a working copy, as what is called and what has the units; the backbone where they do not agree."""
        try:
            copied = WorkingCopy(backbone, whole).module
            self._run, self._hooked = partial(_channels_last, copied), copied
            vectors = self._vectors(images)
        except Exception:  # of any kind: a module that cannot be copied or folded is run as it is
            return backbone, backbone
        pairs = [(vectors[name], expected[name]) for name in self.widths]
        same = all(a is not None and b is not None and apart(a, b) <= bound_of(True) for a, b in pairs)
        return (self._run, copied) if same else (backbone, backbone)


def _channels_last(module: nn.Module, images: Tensor) -> Any:
    return module(images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images)


def _joined(vectors: list[Tensor | None]) -> Tensor | None:
    tensors = [vector for vector in vectors if vector is not None]
    return torch.cat(tensors) if tensors else None
