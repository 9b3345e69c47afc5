"""The dataset of cached features for a loader: found where an earlier run has made them, computed otherwise."""

import itertools
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from lit_transfer.callbacks._cached_loaders import Split
from lit_transfer.callbacks._feature_batches import Chosen, Parts
from lit_transfer.callbacks._feature_checks import Seen, check_samples, random_samples
from lit_transfer.callbacks._feature_computing import Computing, Kept
from lit_transfer.callbacks._feature_front import Front, earlier_fronts
from lit_transfer.callbacks._feature_options import Options
from lit_transfer.callbacks._feature_steps import Steps, seed_generators
from lit_transfer.features import (
    CachedSamples,
    Entry,
    Filling,
    FirstDraw,
    HeapTrimming,
    Layout,
    Outline,
    UnknownContentError,
    apart,
    fingerprint,
    list_entries,
    open_entry,
    prepare,
    probe,
)

__all__ = ["ONE_RUN", "cached_samples"]

T = TypeVar("T")
_OTHER_EPOCH = 1  # than that of the features where each sample has one
ONE_RUN = "run-"  # begins the name of an entry that no other run can recognise


def cached_samples(
    trainer: Trainer, front: Front, options: Options, split: Split, number: int, loader: DataLoader[Any], *, fill: bool
) -> tuple[CachedSamples, Outline] | None:
    """Make the dataset that gives features for a loader's samples, once for all processes of the run.

    Args:
        trainer: The trainer that fits.
        front: What is frozen.
        options: What the user chose.
        split: Which step takes the loader's batches.
        number: Number of the loader among those of the split.
        loader: The loader.
        fill: Compute what no run has stored.

    Returns:
        The dataset, and what crosses the boundary; None if nothing is stored and nothing to be computed.

    Raises:
        ValueError: Features in the place of images would not give what the images give; it says why and what to do.
        OSError: The disk has not enough room.
    """
    name = f"{split} {number}" if number else split
    steps = Steps(trainer, front.module, split, number)
    with steps.ready():
        chosen = Chosen(loader, name)
        options = replace(options, views=options.views if split == "train" else 1)
        seen = _together(trainer, lambda: check_samples(front, steps, chosen, name))
        job = _Job(trainer, front, options, steps, chosen, seen, loader.dataset, name)
        entry = job.found() or (job.filled() if fill else None)
    return None if entry is None else (job.samples(entry), seen.outline)


def _begun(items: Iterator[T]) -> Iterator[T]:
    """Take the first item now, so that a loader's workers read on while something else is made ready."""
    return itertools.chain([next(items)], items)


def _together(trainer: Trainer, action: Callable[[], T]) -> T:
    """Do something in every process; where it fails in one, raise in all, for the others would wait for ever."""
    error: Exception | None = None
    try:
        result = action()
    except Exception as raised:
        error = raised
    if not trainer.strategy.reduce_boolean_decision(error is None, all=True):
        raise error or RuntimeError("FeatureCaching failed in another process, which says why.")
    return result


@dataclass
class _Job:
    """The entry of the store for one loader: its name, whether its contents are right, and how they are made."""

    trainer: Trainer
    front: Front
    options: Options
    steps: Steps
    chosen: Chosen
    seen: Seen
    dataset: Any
    name: str

    def __post_init__(self) -> None:
        chosen, outline = self.chosen, self.seen.outline
        self.parts = Parts(chosen.length, chosen.batch_size, pad=not chosen.in_order)
        dtype = self.options.dtype or str(outline.dtype).removeprefix("torch.")
        views = self.options.views
        self.layout = Layout(chosen.length * views, outline.feature, dtype, len(self.parts) * views)
        # The first process finds the name; the others need not read weights and data for it.
        self.key: str = self.trainer.strategy.broadcast(self._key() if self.trainer.is_global_zero else "")

    def _key(self) -> str:
        front, outline = self.front, self.seen.outline
        units = [module for _, module in front.boundary.units(front.backbone)]
        classes = {type(part) for unit in units for part in unit.modules()}
        narrow = ["bfloat16"] if self.options.fast == "bfloat16" else []
        exact = [self.chosen.batch_size, self.chosen.in_order, torch.get_num_threads()]
        try:
            return fingerprint(
                weights=front.state,
                architecture=[front.boundary.unit, *map(repr, units), classes],
                data=[self.dataset, self.chosen.by_epoch, self.seen.image],
                outline=[outline.image, outline.feature, outline.layout, str(outline.dtype)],
                stored=[self.layout.dtype, self.options.views, *narrow],
                run=[str(self.trainer.precision), self.trainer.strategy.root_device.type, torch.__version__],
                exact=None if self.options.fast else exact,
            )
        except UnknownContentError as error:
            rank_zero_info(f"FeatureCaching: the {self.name} features are kept for this run only: {error}")
            return f"{ONE_RUN}{uuid.uuid4().hex}"

    def found(self) -> Entry | None:
        """Open the entry if a run has made it, unless it holds other features than the front gives now."""
        trainer, entry = self.trainer, open_entry(self.options.folder, self.key)
        if not trainer.strategy.reduce_boolean_decision(entry is not None, all=True) or entry is None:
            return None
        if trainer.strategy.reduce_boolean_decision(self._is_right(entry), all=True):
            rank_zero_info(f"FeatureCaching: {self._told()}, found in {entry.path}.")
            return entry
        rank_zero_info(f"FeatureCaching: {entry.path} has other features than {self.front.where} gives: made anew.")
        if trainer.is_global_zero:
            shutil.rmtree(entry.path)
        trainer.strategy.barrier("lit_transfer: stale features removed")
        return None

    def _is_right(self, entry: Entry) -> bool:
        if self.options.views > 1:  # drawn at random: there is nothing to compare with
            return True
        stored = torch.stack([entry.feature(row) for row in self.seen.indices])
        dtypes = self.layout.torch_dtype, self.seen.outline.dtype
        return apart(stored, self.seen.features.cpu()) <= self.options.stored_bound(*dtypes)

    def samples(self, entry: Entry) -> CachedSamples:
        """Make the dataset that gives what an entry holds."""
        return CachedSamples(entry, self.dataset, self.seen.structure, self.seen.image, self.seen.outline)

    def _kept(self) -> Kept | None:
        """Find the longest front that this one begins with and whose features are stored as they were computed."""
        for front in self._stored_fronts():
            try:
                seen = _together(self.trainer, partial(check_samples, front, self.steps, self.chosen, self.name))
            except (ValueError, TypeError, RuntimeError):  # nobody has asked for this boundary
                continue
            job = replace(self, front=front, seen=seen, options=replace(self.options, dtype=None))
            entry = job.found()
            if entry is not None:
                return Kept(front, seen, job.samples(entry))
        return None

    def _stored_fronts(self) -> list[Front]:
        stored: set[str] = set()
        if self.trainer.is_global_zero:
            listed = [about.get("boundary", "") for _, about, done in list_entries(self.options.folder) if done == 1]
            stored = {where for where in listed if where.startswith(f"{self.front.name}.")} - {self.front.where}
        stored = self.trainer.strategy.broadcast(stored)
        return [front for front in earlier_fronts(self.front) if front.where in stored] if stored else []

    def filled(self) -> Entry:
        """Compute the features, in this process its share, and give the entry when all have theirs."""
        start, strategy = time.monotonic(), self.trainer.strategy
        kept = self._kept()
        _together(self.trainer, lambda: self._prepare(kept))
        filling = Filling(self.options.folder, self.key, self.trainer.global_rank)
        mine = [n for n in filling.pending() if n % self.trainer.world_size == self.trainer.global_rank]
        strategy.barrier("lit_transfer: batches shared out")
        try:
            _together(self.trainer, lambda: self._fill(filling, mine, kept))
        except ValueError:  # what is written is of no use to a later run
            filling.discard()
            raise
        _together(self.trainer, lambda: filling.finish() if self.trainer.is_global_zero else None)
        rank_zero_info(f"FeatureCaching: {self.name} done in {time.monotonic() - start:.1f} s.")
        entry = open_entry(self.options.folder, self.key)
        if entry is None:
            raise FileNotFoundError(
                f"The features that all processes wrote are not in {self.options.folder} here: give FeatureCaching a "
                "folder= that they share."
            )
        return entry

    def _prepare(self, kept: Kept | None) -> None:
        if self.trainer.is_global_zero:
            about = {"split": self.name, "module": type(self.front.module).__name__, "boundary": self.front.where}
            done = prepare(self.options.folder, self.key, self.layout, {**about, "views": self.options.views})
            goes_on = f"; {done:.0%} of it is there from before" if done else ""
            source = f", from those at {kept.front.where}" if kept else ""
            size = f"{self.layout.size / 1e6:.1f} MB in {self.options.folder}"
            rank_zero_info(f"FeatureCaching: {self._told()}{source}, {size}{goes_on}.")

    def _fill(self, filling: Filling, mine: list[int], kept: Kept | None) -> None:
        size, length = self.chosen.batch_size, self.chosen.length
        if not mine:
            return filling.close()
        places = [divmod(number, len(self.parts)) for number in mine]
        computing = Computing(self.front, self.steps, self.seen, self.options, size, kept)
        first, trim_heap = FirstDraw(), HeapTrimming()
        if kept is None:
            twice = self._twice({part for _, part in places})
            batches = self._from_images(places, twice, mine[0])
        else:  # whose samples were drawn twice when they were stored
            twice = {}
            rows = ([view * length + index for index in self.parts[part]] for view, part in places)
            batches = kept.batches(rows, self.chosen.collate)
        try:
            if kept is None:
                batches = _begun(batches)
            with torch.inference_mode(), computing.ready() as compute:
                for number, (view, part) in zip(mine, places, strict=True):
                    if part in twice:
                        first.note(twice[part], computing.taken(next(batches)[1]))
                    rests, batch = next(batches)
                    images, feature = compute(batch)
                    if first.differs(self.parts[part], images):
                        raise random_samples(self.name)
                    rows_here = [view * length + index for index in range(part * size, min(part * size + size, length))]
                    filling.write(number, rows_here, feature[: len(rows_here)], rests)
                    trim_heap()
        finally:
            filling.close()

    def _twice(self, here: set[int]) -> dict[int, list[int]]:
        """Choose samples of these parts that must be the same when they are drawn again, by their part."""
        twice: dict[int, list[int]] = {}
        for index in probe(self.chosen.length) if self.options.views == 1 else []:
            part = index // self.chosen.batch_size
            if part in here:
                twice.setdefault(part, []).append(index)
        return twice

    def _from_images(
        self, places: list[tuple[int, int]], twice: dict[int, list[int]], seed: int
    ) -> Iterator[tuple[list[Any], Any]]:
        """Read the parts, those samples first that are drawn twice; one loader for all, so that it always has work."""

        def keys() -> Iterator[tuple[list[int], int]]:
            for view, part in places:
                if part in twice:
                    yield twice[part], _OTHER_EPOCH
                yield self.parts[part], view

        # Another seed than that of an interrupted run, whose views would come again.
        return self.chosen(
            keys(), generator=seed_generators(seed), structure=self.seen.structure, image=self.seen.image
        )

    def _told(self) -> str:
        views = f" in {self.options.views} views" if self.options.views > 1 else ""
        shape = " x ".join(map(str, self.layout.shape))
        return f"{self.name}: {self.chosen.length} samples{views}, {shape} {self.layout.dtype} at {self.front.where}"
