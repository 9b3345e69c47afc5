"""What the datamodules of labelled images share: datasets, transforms, loaders, and a picture of a batch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import torch
from lightning.fabric.utilities import suggested_max_num_workers
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_transfer.backbones import Preprocessing
from lit_transfer.backbones._preprocessing import IMAGENET_MEAN, IMAGENET_STD
from lit_transfer.data._dataset import LabelledImages
from lit_transfer.data._folds import cut_folds
from lit_transfer.data._lightning import data_rank, lower_log_interval, quiet_no_validation, quiet_worker_advice
from lit_transfer.data._resumable import ResumableLoader
from lit_transfer.data._sampler import Sampling
from lit_transfer.data._scan import Split
from lit_transfer.data._targets import Classes, Targets
from lit_transfer.data._transforms import AUGMENT_NAMES, Augment, training_transform

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Loader = DataLoader[tuple[Tensor, Any]]
# What most torchvision weights were made with: for modules that do not say how their images are made ready.
IMAGENET = Preprocessing(resize=256, crop=224, mean=IMAGENET_MEAN, std=IMAGENET_STD)
FEW_IMAGES = 128  # up to here workers take longer to start than one process takes to read
MOST_PICTURES = 36  # of one batch in a plot


@dataclass(frozen=True)
class Collection:
    """The samples of a set, each (what is read, its target), and what the user should be told about them."""

    targets: Targets
    splits: dict[Split, list[tuple[Any, Any]]]
    notes: list[str] = field(default_factory=list)
    groups: dict[Any, str] = field(default_factory=dict)  # of what is read, where samples hang together


class LabelledImageData(LightningDataModule, ABC):
    """Base of the datamodules whose batches are (images (N, C, H, W), targets).

    Targets are class numbers (N,), or 1.0 and 0.0 for labels (N, L), or numbers (N, T). What `setup` sets depends on
    that: the attributes of the other kinds are not there.

    Attributes:
        class_names: Name of each class, in the order of their numbers.
        num_classes: How many there are.
        class_counts: Training images of each class.
        label_names: Name of each of the L labels.
        label_counts: Training images that have the label, of each.
        target_names: Name of each of the T numbers.
        target_mean: Mean of each over the training images, in its own unit.
        target_std: Standard deviation of each over the training images, in its own unit.
        preprocessing: How images are made ready: that of the module being trained, at the image size in use.
        train_dataset: The training images.
        val_dataset: The validation images; None where there are none.
        test_dataset: The test images; None where there are none.
    """

    class_names: list[str]
    num_classes: int
    class_counts: list[int]
    label_names: list[str]
    label_counts: list[int]
    target_names: list[str]
    target_mean: list[float]
    target_std: list[float]
    preprocessing: Preprocessing
    train_dataset: LabelledImages
    val_dataset: LabelledImages | None
    test_dataset: LabelledImages | None

    _test_images: ClassVar[str] = ""  # other ways to give some, for the error where there are none

    def __init__(
        self,
        batch_size: int,
        *,
        augment: Augment,
        sampling: Sampling = "shuffle",
        seed: int,
        num_workers: int | None,
        pin_memory: bool | None,
        persistent_workers: bool | None,
    ) -> None:
        super().__init__()
        _check_loading(batch_size, num_workers, persistent_workers)
        if not callable(augment):
            _check_name("augment", augment, AUGMENT_NAMES, " or a callable")
        _check_name("sampling", sampling, get_args(Sampling))
        self.batch_size, self.augment, self.sampling, self.seed = batch_size, augment, sampling, seed
        self.num_workers, self.pin_memory, self.persistent_workers = num_workers, pin_memory, persistent_workers
        self._collection: Collection | None = None
        self._order_seed, self._fold = seed, (0, 0)
        self._training: ResumableLoader[tuple[Tensor, Any]] | None = None
        self._place: dict[str, int] = {}

    # --- what a set of images must say ----------------------------------------------------------------------------

    @abstractmethod
    def collect(self) -> Collection:
        """Find all samples; called once."""

    @abstractmethod
    def reader(self, mode: str) -> Callable[[Any], Tensor]:
        """Make what gives the pixels of one sample, uint8 (C, H, W), in the channels of a PIL mode."""

    @abstractmethod
    def fit_preprocessing(self, preprocessing: Preprocessing) -> Preprocessing:
        """Adapt the module's preprocessing to these images."""

    @abstractmethod
    def default_augmentation(self, preprocessing: Preprocessing) -> Sequence[nn.Module]:
        """Make the steps of `augment="default"`, from pixels of any size to (C, crop, crop)."""

    # --- Lightning ------------------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Find the images, once, and make the datasets, with transforms that fit the trainer's module."""
        if self._collection is None:
            self._collection = self._with_fold(self.collect())
            rank_zero_info(_describe(type(self).__name__, self._collection, self._sampled(self._collection)))
        samples = self._collection.splits
        for name, told in self._collection.targets.told([target for _, target in samples["train"]]).items():
            setattr(self, name, told)
        self.preprocessing = self.fit_preprocessing(self._module_preprocessing())
        default = self.default_augmentation(self.preprocessing)
        augmented = training_transform(self.augment, self.preprocessing, default)
        evaluation = self.preprocessing.transform()
        self.train_dataset = self._dataset("train", augmented, self._order_seed)
        self.val_dataset = self._dataset("val", evaluation) if "val" in samples else None
        self.test_dataset = self._dataset("test", evaluation) if "test" in samples else None

    def train_dataloader(self) -> Loader:
        """Give the training batches: shuffled anew each epoch, the same on every run with the same seed."""
        loader = self._training = self._train_loader(self._workers())
        loader.load_state_dict(self._place)
        self._place = {}
        if self.trainer is not None:
            lower_log_interval(self.trainer, len(loader))
        return loader

    def val_dataloader(self) -> Loader | list[Loader]:
        """Give the validation batches; none where there are no validation images."""
        if self.val_dataset is None:
            quiet_no_validation()
            return []
        return self._loader(self.val_dataset, self._workers())

    def test_dataloader(self) -> Loader:
        """Give the test batches.

        Raises:
            ValueError: If there are no test images.
        """
        if self.test_dataset is None:
            raise ValueError(
                f"the data has no test images: give data.test_fraction above 0 before training{self._test_images}. "
                "The validation images are used by validate."
            )
        return self._loader(self.test_dataset, self._workers())

    def predict_dataloader(self) -> Loader:
        """Give the test batches, or the validation batches where there are no test images.

        Raises:
            ValueError: If there are neither.
        """
        dataset = self.test_dataset or self.val_dataset
        if dataset is None:
            raise ValueError("the data has neither test nor validation images to predict; see data.val_fraction.")
        return self._loader(dataset, self._workers())

    def state_dict(self) -> dict[str, Any]:
        """Give the place in the training data, for the checkpoint."""
        return {} if self._training is None else self._training.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on at this place with the next training loader.

        Lightning gives a loader its own state back only if nobody asked for the loader before, as a module does that
        wants to know the length of the run for its scheduler.
        """
        self._place = state_dict

    # --- several runs ---------------------------------------------------------------------------------------------

    def take_fold(self, fold: int, folds: int) -> None:
        """Validate on one of several folds and train on the others; call it before `setup`.

        The folds are cut out of the training and the validation images together, by `seed`, each sample into exactly
        one: classes and labels in proportion, numbers by tenths of their order, groups whole. Test images stay aside.

        Args:
            fold: Which one is validated, from 0.
            folds: How many there are, at least 2.

        Raises:
            ValueError: If there is no such fold, or `setup` has run.
        """
        if folds < 2 or not 0 <= fold < folds:
            raise ValueError(f"fold={fold} of folds={folds}: expected at least two folds, numbered from 0.")
        if self._collection is not None:
            raise ValueError("take_fold comes too late: the images are split. Make the data anew for each fold.")
        self._fold = fold, folds

    def reseed(self, seed: int) -> None:
        """Give order and augmentation another seed, and leave the split as it is; call it before `setup`."""
        self._order_seed = seed

    def name_of(self, item: Any) -> str:
        """Name a sample by what is read of it: the same on every machine, and unlike any other's."""
        return str(item)

    def val_rows(self) -> list[dict[str, Any]]:
        """Give `path` and the target in words for each validation image, in the order of the loader."""
        assert self.val_dataset is not None
        targets = self._collected().targets
        return [{"path": self.name_of(item), **targets.columns(value)} for item, value in self.val_dataset.samples]

    def _with_fold(self, found: Collection) -> Collection:
        fold, folds = self._fold
        if not folds:
            return found
        samples = [*found.splits["train"], *found.splits.get("val", [])]
        groups = [found.groups.get(item, self.name_of(item)) for item, _ in samples]
        of, notes = cut_folds(found.targets, [value for _, value in samples], groups, folds, seed=self.seed)
        parts: dict[Split, list[tuple[Any, Any]]] = {"train": [], "val": []}
        for sample, number in zip(samples, of, strict=True):
            parts["val" if number == fold else "train"].append(sample)
        told = f"val is fold {fold} of {folds}, cut out of {len(samples)} images of train and val (seed {self.seed})"
        kept = [note for note in found.notes if not note.startswith("val is ")]
        return replace(found, splits={**found.splits, **parts}, notes=[told, *notes, *kept])

    # --- on request -----------------------------------------------------------------------------------------------

    def plot_batch(self, path: str | Path | None = None, *, split: Split = "train") -> "Figure":
        """Draw the first batch as the network gets it, with augmentation, normalisation undone.

        Args:
            path: File to write, its suffix tells the format; None to write none.
            split: `"train"`, `"val"` or `"test"`.

        Returns:
            The figure, of up to 36 images with their targets in words.
        """
        from lit_transfer.data._plot import plot_images  # matplotlib is slow to import

        if self._collection is None:
            self.setup()
        dataset = {"train": self.train_dataset, "val": self.val_dataset, "test": self.test_dataset}[split]
        if dataset is None:
            raise ValueError(f"the data has no {split} images to plot.")
        images, targets = next(iter(self._train_loader(0) if split == "train" else self._loader(dataset, 0)))
        titles = [self._collected().targets.title(target) for target in targets[:MOST_PICTURES]]
        figure = plot_images(images[:MOST_PICTURES], titles, self.preprocessing.mean, self.preprocessing.std)
        if path is not None:
            figure.savefig(path)
        return figure

    # --- how ------------------------------------------------------------------------------------------------------

    def _module_preprocessing(self) -> Preprocessing:
        module = None if self.trainer is None else self.trainer.lightning_module
        preprocessing = getattr(module, "preprocessing", None)
        return preprocessing if isinstance(preprocessing, Preprocessing) else IMAGENET

    def _dataset(self, split: Split, transform: Callable[[Tensor], Tensor], seed: int | None = None) -> LabelledImages:
        read = self.reader(self.preprocessing.mode)
        targets = self._collected().targets
        names = targets.names if isinstance(targets, Classes) else None
        return LabelledImages(self._collected().splits[split], names, read=read, transform=transform, seed=seed)

    def _sampled(self, collection: Collection) -> list[str]:
        """Say how often each class comes, where that is not as often as it is there.

        Raises:
            ValueError: If there are no classes to balance.
        """
        if self.sampling == "shuffle":
            return []
        if isinstance(collection.targets, Classes):
            train = [target for _, target in collection.splits["train"]]
            return [f"balanced: each class comes {len(train) / len(set(train)):.4g} times in an epoch"]
        raise ValueError(
            f"data.sampling='balanced' needs one class for each image; the data has {collection.targets}. Leave it "
            "out; for rare labels give MultiLabelClassifier pos_weight='balanced'."
        )

    def _collected(self) -> Collection:
        assert self._collection is not None
        return self._collection

    def _train_loader(self, workers: int) -> ResumableLoader[tuple[Tensor, Any]]:
        quiet_worker_advice()
        rank, world_size = data_rank(self.trainer)
        return ResumableLoader(
            self.train_dataset,
            seed=self._order_seed,
            seed_samples=False,  # it takes pairs of index and epoch
            balance=self.train_dataset.targets if self.sampling == "balanced" else None,
            rank=rank,
            world_size=world_size,
            **self._loading(workers),
        )

    def _loader(self, dataset: LabelledImages, workers: int) -> Loader:
        quiet_worker_advice()
        # Its own generator, since a loader otherwise draws from torch's and so changes what the training draws next.
        return DataLoader(dataset, generator=torch.Generator().manual_seed(self._order_seed), **self._loading(workers))

    def _loading(self, workers: int) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "num_workers": workers,
            "pin_memory": torch.cuda.is_available() if self.pin_memory is None else self.pin_memory,
            "persistent_workers": workers > 0 if self.persistent_workers is None else self.persistent_workers,
        }

    def _workers(self) -> int:
        if self.num_workers is not None:
            return self.num_workers
        if sum(map(len, self._collected().splits.values())) <= FEW_IMAGES:
            return 0
        return min(4, suggested_max_num_workers(self.trainer.num_devices if self.trainer else 1))


def _describe(name: str, collection: Collection, sampled: list[str]) -> str:
    sizes = ", ".join(f"{split} {len(collection.splits.get(split, []))}" for split in ("train", "val", "test"))
    return "\n  ".join([f"{name}: {collection.targets}; images: {sizes}", *collection.notes, *sampled])


def _check_loading(batch_size: int, num_workers: int | None, persistent_workers: bool | None) -> None:
    if batch_size < 1:
        raise ValueError(f"data.batch_size must be at least 1; got {batch_size}.")
    if num_workers is not None and num_workers < 0:
        raise ValueError(f"data.num_workers must be at least 0, or None to choose; got {num_workers}.")
    if persistent_workers and num_workers == 0:
        raise ValueError("data.persistent_workers=True needs workers; got data.num_workers=0.")


def _check_name(option: str, name: str, known: Sequence[str], other: str = "") -> None:
    if name not in known:
        near = get_close_matches(str(name), known, n=1, cutoff=0.4)  # "randaugment" means "rand"
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"data.{option} must be one of {tuple(known)}{other}; got {name!r}.{hint}")
