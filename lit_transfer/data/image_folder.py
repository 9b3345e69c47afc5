"""A folder of photos, sorted into class folders, as a datamodule."""

from functools import partial
from pathlib import Path
from typing import ClassVar

from lit_transfer.data._image_file_data import ImageFileData
from lit_transfer.data._images import check_header
from lit_transfer.data._labelled_image_data import Collection
from lit_transfer.data._sampler import Sampling
from lit_transfer.data._scan import ClassFolders, Split, check_same_classes, find_splits, scan_classes
from lit_transfer.data._split import check_enough, stratified_split
from lit_transfer.data._targets import Classes
from lit_transfer.data._transforms import Augment

Sample = tuple[Path, int]


class ImageFolderData(ImageFileData):
    """Photos in `root/CLASS/`, or in `root/train/CLASS/` and so on, made ready for the module being trained.

    The folder of validation images is called `val`, `valid` or `validation`, that of the test images `test`. Where one
    is missing, its images are taken from the training images, the same ones at every run with the same seed.

    Files that are no image by their name (GIF is none) are skipped and counted. See LabelledImageData for what `setup`
    sets, and `plot_batch` for a look at a batch.
    """

    _test_images: ClassVar[str] = ", or a folder test/ in data.root"

    def __init__(
        self,
        root: str | Path,
        batch_size: int = 32,
        *,
        augment: Augment = "default",
        sampling: Sampling = "shuffle",
        image_size: int | None = None,
        val_fraction: float = 0.2,
        test_fraction: float = 0.0,
        seed: int = 0,
        num_workers: int | None = None,
        pin_memory: bool | None = None,
        persistent_workers: bool | None = None,
        verify: bool = True,
        keep_decoded: bool = False,
    ) -> None:
        """Remember where the images are; nothing is read before `setup`.

        Args:
            root: The folder.
            batch_size: Images in a batch, on each device.
            augment: What the training images go through: `"default"` cuts out a random part of 35 to 100 % of the area
                and flips half of them left to right; `"trivial"` and `"rand"` add torchvision's TrivialAugmentWide or
                RandAugment; `"none"` treats them as in evaluation. Or a callable that takes a PIL image: an image or
                uint8 tensor that it returns is brought to size and normalised, a float tensor is taken as it is.
            sampling: `"shuffle"` takes each training image once an epoch; `"balanced"` equally many of each class:
                those of a small class come several times, and of a large one a part, another one each epoch.
            image_size: Side of the images in pixels; None for what the module's preprocessing says, 224 if it has none.
            val_fraction: Share of each class that becomes the validation images if there is no folder of them; 0 for
                none.
            test_fraction: The same for the test images.
            seed: Of the split, the order and the augmentation.
            num_workers: Processes that load images; None to choose: none for up to 128 images, else up to 4.
            pin_memory: Load into page-locked memory; None for yes if there is CUDA.
            persistent_workers: Keep the processes from epoch to epoch; None for yes if there are any.
            verify: Open each file's header in `setup`, so that a broken file is found before training starts.
            keep_decoded: Keep each decoded image on disk, its shorter side shrunk to what evaluation wants (for 224
                pixels 256, about 0.25 MB a photo), and read that from then on: validation stays the same, training cuts
                its random parts out of the smaller image. `lit-transfer cache list` shows them, `clear` removes them.
        """
        super().__init__(
            batch_size,
            augment=augment,
            sampling=sampling,
            image_size=image_size,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            seed=seed,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=persistent_workers,
            verify=verify,
            keep_decoded=keep_decoded,
        )
        self.root = Path(root)

    def collect(self) -> Collection:
        """Read the folders, split them where needed, and open each file's header.

        Raises:
            FileNotFoundError: If root is no folder.
            ValueError: If the folders are not as expected, or a file is broken.
        """
        folders = find_splits(self.root)
        scans = {split: scan_classes(folder) for split, folder in folders.items()}
        classes = list(scans["train"].images)
        for split in scans:
            check_same_classes(classes, scans[split].images, split)
        found = {split: _samples(scan) for split, scan in scans.items()}
        splits, notes = self.fill_splits(found, partial(self._cut, classes=classes), "each class of train")
        notes += self._skipped([path for scan in scans.values() for path in scan.skipped])
        if self.verify:
            for path, _ in (sample for samples in splits.values() for sample in samples):
                check_header(path)
        return Collection(Classes(classes), splits, notes)

    def _cut(self, train: list[Sample], wanted: dict[Split, float], classes: list[str]) -> list[list[int]]:
        targets = [target for _, target in train]
        check_enough(targets, classes, list(wanted), "data.root", f"a folder {list(wanted)[-1]}/")
        keys = [path.relative_to(self.root).as_posix() for path, _ in train]
        return stratified_split(keys, targets, list(wanted.values()), seed=self.seed)

    def _skipped(self, paths: list[Path]) -> list[str]:
        if not paths:
            return []
        names = [path.relative_to(self.root).as_posix() for path in paths[:3]]
        files = "1 file that is" if len(paths) == 1 else f"{len(paths)} files that are"
        return [f"skipped {files} no image in a class folder: {', '.join(names)}{', ...' if len(paths) > 3 else ''}"]


def _samples(scan: ClassFolders) -> list[Sample]:
    return [(path, number) for number, files in enumerate(scan.images.values()) for path in files]
