"""How the features of a batch are computed: on the front itself, or on a copy of it that is made for inference."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lit_transfer.callbacks._feature_checks import Seen
from lit_transfer.callbacks._feature_front import Front
from lit_transfer.callbacks._feature_options import Options
from lit_transfer.callbacks._feature_steps import Steps
from lit_transfer.features import CachedSamples, Serving, checked_copy, run_until, split_sample

__all__ = ["Compute", "Computing", "Kept"]

Compute = Callable[[Any], tuple[Tensor, Tensor]]
"""Gives, for a batch as the loader gives it, what the backbone takes and the features."""


@dataclass(frozen=True)
class Kept:
    """Stored features of an earlier front, from which those of a longer one are computed."""

    front: Front
    seen: Seen
    samples: CachedSamples

    def batches(self, rows: Iterable[list[int]], collate: Callable[[Any], Any]) -> Iterator[tuple[list[str], Any]]:
        """Yield, for the rows of each batch, what else is in each sample, and the batch as a loader would give it."""
        for part in rows:
            samples = [self.samples.row(row) for row in part]
            yield [split_sample(sample, self.seen.structure, self.seen.image) for sample in samples], collate(samples)

    def looked_at(self, views: int) -> Tensor:
        """Give the features, as they are carried, of the samples that the checks have looked at."""
        features = self.seen.features
        if views == 1:  # of several, who knows which one was looked at
            features = torch.stack([self.samples.entry.feature(row) for row in self.seen.indices]).to(features)
        return features.reshape(-1, *self.seen.outline.carried)


@dataclass(frozen=True)
class Computing:
    """Computes the features of one loader's samples.

    Attributes:
        front: The front.
        steps: Runs the step.
        seen: What the checks have found out.
        options: What the user chose.
        batch_size: Samples in a batch.
        kept: Where to go on from; None to start from images.
    """

    front: Front
    steps: Steps
    seen: Seen
    options: Options
    batch_size: int
    kept: Kept | None

    @contextmanager
    def ready(self) -> Iterator[Compute]:
        """Give what computes, while batches are those of images, or of kept features."""
        compute = (self._fast() if self.options.fast else None) or self._exact
        kept = self.kept
        serving = Serving(self.front.backbone, kept.front.boundary, kept.seen.outline) if kept else None
        try:
            yield compute
        finally:
            if serving is not None:
                serving.remove()

    def taken(self, batch: Any) -> Tensor:
        """Return what the backbone takes of a batch."""
        return run_until(lambda: self.steps.run(batch), self.front.backbone, None)[0]

    def _exact(self, batch: Any) -> tuple[Tensor, Tensor]:
        return run_until(lambda: self.steps.run(batch), self.front.backbone, self.front.unit)

    def _fast(self) -> Compute | None:
        """Return what computes on a working copy; None where that is not the same, or not asked for off a CPU."""
        images = self.seen.images if self.kept is None else self.kept.looked_at(self.options.views)
        asked = self.options.fast is not True  # for compiling or bfloat16, on whatever device
        if not (asked or images.device.type == "cpu") or self.seen.outline.dtype != torch.float32:
            return None
        key = self.options.fast, self.batch_size
        copied, why = checked_copy(
            self.front.backbone,
            self.front.boundary,
            images,
            self.seen.features,
            fast=self.options.fast,
            batch_size=self.batch_size,
            served=(self.kept.front.boundary, self.kept.seen.outline) if self.kept else None,
            known=None if self.kept else self.front.copies.get(key),
        )
        why = " ".join(why.split())
        if copied is None:
            rank_zero_info(f"FeatureCaching: computed without a working copy of {self.front.where}: {why}.")
            return None
        rank_zero_info(f"FeatureCaching: computed on a copy, {why}.")
        if not self.kept:
            self.front.copies[key] = copied
        run = copied

        def compute(batch: Any) -> tuple[Tensor, Tensor]:
            taken = self.taken(batch)
            return taken, run(taken)

        return compute
