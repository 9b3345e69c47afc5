"""A fit's loaders with other datasets in them. Lightning has no public way to them: its private parts are used here.

Where they come from: loops/fit_loop.py, loops/evaluation_loop.py and trainer/connectors/data_connector.py of Lightning
2.6. A loop asks its `_data_source` for loaders when it needs them, which for the training is as early as
`configure_optimizers` (`estimated_stepping_batches`), and else after the loops' state was restored.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal, cast

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.connectors.data_connector import _DataLoaderSource
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader, Dataset

from lit_transfer.features import CachedSamples
from lit_transfer.restore import capture_random_state, restore_random_state

__all__ = ["CachedLoaders", "MakeDataset", "Split", "with_attributes"]

Split = Literal["train", "val"]
_SEEDED = "_lit_transfer_seeded"  # on a loader: it has drawn its seed
# What torch wants of a loader without workers; with some, it wants their number before their context.
_NO_WORKERS: dict[str, Any] = {
    "num_workers": 0,
    "prefetch_factor": None,
    "persistent_workers": False,
    "multiprocessing_context": None,
}
MakeDataset = Callable[[Split, int, DataLoader[Any]], "Dataset[Any] | None"]
"""For a split, the number of the loader in it and the loader: the dataset to put in, or None to leave it as it is."""


def with_attributes(loader: DataLoader[Any], **values: Any) -> DataLoader[Any]:
    """Copy a loader with other attributes and no iterator; torch refuses to set most of them after `__init__`."""
    made = copy.copy(loader)
    for name, value in {**values, "_iterator": None}.items():
        object.__setattr__(made, name, value)
    _note_again(vars(made), values, loader.dataset)
    return made


def _note_again(noted: dict[str, Any], values: dict[str, Any], dataset: object) -> None:
    """Change the arguments that Lightning notes to make a loader again with a distributed sampler."""
    if "__pl_saved_args" not in noted:
        return
    kept = noted["__pl_saved_kwargs"]
    noted["__pl_saved_kwargs"] = kept | {name: value for name, value in values.items() if name in kept}
    if "dataset" in values:
        args, noted["__dataset"] = noted["__pl_saved_args"], values["dataset"]
        noted["__pl_saved_args"] = tuple(values["dataset"] if value is dataset else value for value in args)


class _Source(_DataLoaderSource):
    """Gives what the source that it stands for gives, with datasets replaced; asks that one only once at a time."""

    def __init__(self, owner: "CachedLoaders", source: _DataLoaderSource, split: Split) -> None:
        super().__init__(source.instance, source.name)
        self.owner, self.replaced, self.split = owner, source, split
        self.early: Any = None  # what was given before the fit began, and is asked for again
        self.random: list[Any] = []

    def dataloader(self) -> Any:
        if not self.owner.begun:
            self.early = super().dataloader()
            self.random = self.owner.random_state(self.early)
            return tree_map_only(DataLoader, _without_workers, self.early)
        if self.early is None:
            loaders = self.owner.replace(self.split, super().dataloader())
            self.random = self.owner.random_state(loaders)
            return loaders
        early, self.early = self.early, None
        loaders = self.owner.replace(self.split, early)
        self.owner.rewind(self.random, undo=not self.owner.only_seeded(self.random, early))
        return loaders


class CachedLoaders:
    """Puts datasets of one's own into the loaders of a fit when Lightning asks for these, and takes them out again.

    Samplers, collate functions, workers and classes of the loaders stay, and so does every random number that the
    training draws.

    Attributes:
        begun: Whether loaders that are asked for get their dataset by now.
    """

    def __init__(self, trainer: Trainer, make: MakeDataset, *, workers: bool) -> None:
        """Stand between the loops and what they get their loaders from.

        Args:
            trainer: The trainer that fits.
            make: Makes the datasets. What it draws at random is undone.
            workers: Read the datasets in the workers of the loader, if it has any, and not in this process. A sampler
                that draws from the training's generator then does so when it did before.
        """
        self.begun = False
        if not workers:
            warnings.filterwarnings("ignore", ".*does not have many workers which may be a bottleneck")
        self._trainer, self._make, self._workers = trainer, make, workers
        self._options: dict[int, dict[str, Any]] = {}  # of the loaders that have lost their workers, by their dataset
        self._given: dict[tuple[Split, int], DataLoader[Any]] = {}  # before Lightning gave them other samplers
        self._now: dict[str, Any] | None = None
        self._sources: list[tuple[Any, _Source]] = []
        for loop, split in ((trainer.fit_loop, "train"), (trainer.fit_loop.epoch_loop.val_loop, "val")):
            source = _Source(self, loop._data_source, cast("Split", split))
            loop._data_source = source
            self._sources.append((loop, source))

    def begin(self) -> None:
        """Start to replace: to be called when weights are there. Loaders that exist already are asked for again."""
        self.begun, loop = True, self._trainer.fit_loop
        if loop._data_fetcher is not None:
            loop._data_fetcher.teardown()
            loop._data_fetcher = None
        loop._combined_loader = None

    def replace(self, split: Split, loaders: Any) -> Any:
        """Give the loaders with their datasets replaced.

        Raises:
            ValueError: They are no DataLoaders over datasets that are asked by index, or several for the training.
        """
        if isinstance(loaders, CombinedLoader) or any(not isinstance(one, DataLoader) for one in _flat(loaders)):
            raise ValueError(
                f"FeatureCaching needs torch's DataLoader over a dataset that is asked by index; the {split} loader is "
                f"a {type(loaders).__name__}."
            )
        if split == "train" and len(_flat(loaders)) > 1:
            raise ValueError("FeatureCaching takes one loader of training data; got several.")
        state = self.random_state(loaders)
        numbers = iter(range(len(_flat(loaders))))

        def one(loader: DataLoader[Any]) -> DataLoader[Any]:
            key = split, next(numbers)
            self._given[key] = loader
            return self._with_dataset(loader, self._make(*key, loader))

        replaced = tree_map_only(DataLoader, one, loaders)
        self._set_random_state(state)
        return replaced

    def _with_dataset(self, loader: DataLoader[Any], dataset: Dataset[Any] | None) -> DataLoader[Any]:
        if dataset is None:
            return loader
        made = with_attributes(loader, dataset=dataset)
        # Workers run a sampler to its end, where it draws once more, and this process does not.
        if self._workers or not loader.num_workers or any(_generators(*_samplers(loader))):
            return made
        names = "__class__", "generator", *_NO_WORKERS
        self._options[id(dataset)] = {name: getattr(loader, name) for name in names}
        kind = _seeded_once(type(loader)) if loader.persistent_workers else type(loader)
        return with_attributes(made, **_NO_WORKERS, __class__=kind)

    def random_state(self, loaders: Any) -> list[Any]:
        """Give the state of all generators of this process, and of those that the loaders hold."""
        own = [
            (generator, generator.get_state())
            for loader in _flat(loaders)
            for generator in _generators(loader, *_samplers(loader))
        ]
        return [capture_random_state(self._trainer.strategy.root_device), own]

    def _set_random_state(self, state: list[Any]) -> None:
        restore_random_state(state[0], self._trainer.strategy.root_device)
        for generator, value in state[1]:
            generator.set_state(value)

    def only_seeded(self, state: list[Any], loaders: Any) -> bool:
        """Return whether since a state no number was drawn but the seed that an iterator of each loader draws."""
        now, later = self.random_state(loaders), torch.get_rng_state()
        self._set_random_state(state)
        for loader in _flat(loaders):
            torch.empty((), dtype=torch.int64).random_(generator=loader.generator)
        same = torch.equal(torch.get_rng_state(), later)
        self._set_random_state(now)
        return same

    def rewind(self, state: list[Any], *, undo: bool) -> None:
        """Let the iterator that is made anew draw what the first one drew; `settle` may undo it for what follows."""
        self._now = capture_random_state(self._trainer.strategy.root_device) if undo else None
        self._set_random_state(state)

    def settle(self) -> None:
        """Go on with the random numbers where the training stood, once the loops have made their iterators."""
        if self._now is not None:
            restore_random_state(self._now, self._trainer.strategy.root_device)
            self._now = None

    def move(self) -> None:
        """Ask for the datasets of all loaders again, for this epoch and those after it; to be called at its start."""
        before = [self._loaders_of(loop) for loop, _ in self._sources]
        started = [any(map(_has_begun, loaders)) for loaders in before]
        state = self.random_state([loader for loaders in before for loader in loaders])
        self._put_back()
        for loop, source in self._sources:
            if loop._combined_loader is not None:
                loop._combined_loader.flattened = [
                    self._with_dataset(loader, self._make(source.split, number, self._given[source.split, number]))
                    for number, loader in enumerate(loop._combined_loader.flattened)
                ]
        self._set_random_state(state)
        self._go_on(before, started)

    def _loaders_of(self, loop: Any) -> list[Any]:
        return [] if loop._combined_loader is None else list(loop._combined_loader.flattened)

    def _go_on(self, before: list[list[Any]], started: list[bool]) -> None:
        """Let the loaders that are new draw the seeds that the ones before would have drawn from here on."""
        loop = self._trainer.fit_loop
        # As in the epoch loop, which makes a new iterator for each epoch but the first one and one that is resumed.
        made = self._trainer.current_epoch == 0 or loop.is_resuming or loop.epoch_loop.restarting
        started[0] = started[0] and not made
        for (own, _), olds, runs in zip(self._sources, before, started, strict=True):
            for old, new in zip(olds, self._loaders_of(own), strict=True):
                if new is not old:
                    self._set_begun(new, runs)
        if made and loop._data_fetcher is not None:
            self.rewind(self._sources[0][1].random, undo=True)
            iter(loop._data_fetcher)
            self.settle()

    def _set_begun(self, loader: Any, begun: bool) -> None:
        """Make the iterator of persistent workers if the loader before had one: another one would draw a seed."""
        vars(loader).pop(_SEEDED, None)
        if begun and getattr(loader, "persistent_workers", False):
            state = self.random_state(loader)
            loader._iterator = loader._get_iterator()
            self._set_random_state(state)
        elif begun:
            setattr(loader, _SEEDED, True)

    def remove(self) -> None:
        """Leave everything as it was found."""
        for loop, source in self._sources:
            if loop._data_source is source:
                loop._data_source = source.replaced
        self._make = _nothing
        self._put_back()

    def _put_back(self) -> None:
        for loop, _ in self._sources:
            combined = loop._combined_loader
            if combined is not None:
                combined.flattened = [self._as_before(loader) for loader in combined.flattened]
        self._options = {}

    def _as_before(self, loader: Any) -> Any:
        dataset = getattr(loader, "dataset", None)
        if not isinstance(dataset, CachedSamples):
            return loader
        return with_attributes(loader, dataset=dataset.dataset, **self._options.get(id(dataset), {}))


def _without_workers(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Copy a loader whose length is wanted and no batch: workers would begin to read some."""
    return with_attributes(loader, **_NO_WORKERS)


def _seeded_once(kind: type[DataLoader[Any]]) -> type[DataLoader[Any]]:
    """Make a class of loaders without workers that draw a seed once, as those with persistent workers do."""

    def iterate(loader: DataLoader[Any]) -> Iterator[Any]:
        if hasattr(loader, _SEEDED):
            loader.generator = torch.Generator()
        setattr(loader, _SEEDED, True)
        return kind.__iter__(loader)

    return type(kind.__name__, (kind,), {"__iter__": iterate})


def _has_begun(loader: Any) -> bool:
    return getattr(loader, "_iterator", None) is not None or hasattr(loader, _SEEDED)


def _nothing(split: Split, number: int, loader: DataLoader[Any]) -> None:
    return None


def _flat(loaders: Any) -> list[Any]:
    if isinstance(loaders, dict):
        return [one for value in loaders.values() for one in _flat(value)]
    return [one for value in loaders for one in _flat(value)] if isinstance(loaders, list | tuple) else [loaders]


def _samplers(loader: Any) -> tuple[Any, ...]:
    batches = getattr(loader, "batch_sampler", None)
    return getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None)


def _generators(*holders: Any) -> list[torch.Generator]:
    """Return the generators of loaders or samplers, each once."""
    found = [getattr(holder, "generator", None) for holder in holders]
    return list({id(one): one for one in found if isinstance(one, torch.Generator)}.values())
