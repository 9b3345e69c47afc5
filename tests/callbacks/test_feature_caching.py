"""What is said to be equal is so bit for bit: batches of 8 with `drop_last`, float32, one thread, CPU, `fast=False`."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from cached_module import (
    LOOKED,
    READS,
    TRAIN,
    TWICE,
    VAL,
    Fit,
    Images,
    Module,
    SaveAt,
    furthest,
    probe,
    train_loader,
    trainer,
    val_loader,
)
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from torch import nn
from torch.utils.data import DataLoader

from lit_transfer import freeze
from lit_transfer.callbacks import FeatureCaching, FinetuningSchedule, TolerantRestore
from lit_transfer.data import ImageFolderData
from lit_transfer.features import list_entries
from lit_transfer.modules import ImageClassifier

pytestmark = pytest.mark.filterwarnings("ignore:Found .* in eval mode")  # frozen by hand in some tests


@pytest.mark.parametrize(
    ("kind", "workers", "optimizer"),
    [
        ("shuffle", 0, torch.optim.SGD),
        ("shuffle", 2, torch.optim.AdamW),
        ("weighted", 0, torch.optim.AdamW),
        ("weighted", 2, torch.optim.SGD),
        ("own generator", 2, torch.optim.SGD),
    ],
)
def test_the_training_ends_where_it_ends_without_and_images_are_read_once(
    kind: str, workers: int, optimizer: Any, fit: Fit, caching: Any
) -> None:
    loaders = [(train_loader(kind, workers), val_loader(workers)) for _ in range(3)]
    plain = fit(probe(), module=Module(optimizer), train=loaders[0][0], val=loaders[0][1])
    READS.value.zero_()
    cached = fit(caching(), probe(), module=Module(optimizer), train=loaders[1][0], val=loaders[1][1])
    assert furthest(plain, cached) == 0
    assert plain.val_losses == cached.val_losses
    filled = TRAIN + 3 + VAL  # the last batch of the training samples is filled up
    assert READS.value.item() == filled + TWICE + LOOKED
    assert cached.computed == filled + 2 * LOOKED
    if workers:
        return
    READS.value.zero_()
    again = fit(caching(), probe(), module=Module(optimizer), train=loaders[2][0], val=loaders[2][1])
    assert furthest(plain, again) == 0
    assert READS.value.item() == LOOKED


HEAD: Any = {"train": ["head"]}
MOVES: list[tuple[Any, int, bool]] = [
    ([HEAD, {"at": {"epoch": 1}, "train": ["head", "stage1"]}], 0, True),
    ([HEAD, {"at": {"epoch": 1}, "train": ["head", "stage1"]}], 2, False),
    ([{"train": ["head", "stage1"]}, {"at": {"epoch": 2}, "train": "all"}], 0, False),
    ([HEAD, {"at": {"step": 6}, "train": "all"}], 0, True),
    ([HEAD, {"at": {"step": 6}, "train": "all"}], 0, False),
    ([HEAD, {"at": {"step": 2}, "train": "all"}], 2, True),
    ([HEAD, {"at": {"fraction": 0.7}, "train": ["head", "stage1"]}], 0, True),
    ("full", 0, True),
]


@pytest.mark.parametrize(("phases", "workers", "first"), MOVES)
def test_when_the_front_begins_to_train_images_are_used_again(
    phases: Any, workers: int, first: bool, fit: Fit, caching: Any
) -> None:
    loaders = [(train_loader("own generator", workers), val_loader(workers)) for _ in range(2)]
    plain = fit(FinetuningSchedule(phases), train=loaders[0][0], val=loaders[0][1])
    read = READS.value.item()
    both = [caching(), FinetuningSchedule(phases)]
    cached = fit(*(both if first else reversed(both)), train=loaders[1][0], val=loaders[1][1])
    assert furthest(plain, cached) == 0
    assert plain.val_losses == cached.val_losses
    assert (READS.value.item() == 2 * read) == (phases == "full")


def test_any_way_of_freezing_will_do(fit: Fit, caching: Any) -> None:
    def module() -> Module:
        made = Module()
        made.encoder.requires_grad_(False).eval()
        return made

    assert furthest(fit(module=module()), fit(caching(), module=module())) == 0
    held = Module()
    freeze(held, "encoder.0")
    again = Module()
    freeze(again, "encoder.0")
    assert furthest(fit(module=held), fit(caching(), module=again)) == 0


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("phases", ["linear_probe", {"preset": "freeze_first_k", "k": 1}])
def test_our_own_module_and_data_need_not_know(workers: int, phases: Any, photos: Path, tmp_path: Path) -> None:
    def run(*callbacks: Callback) -> ImageClassifier:
        torch.manual_seed(0)
        module = ImageClassifier(nn.Sequential(*Module().encoder, nn.Linear(16, 7)), None, head="mlp", dropout=0.2)
        data = ImageFolderData(photos, 8, augment="none", image_size=16, num_workers=workers)
        torch.manual_seed(7)
        trainer(FinetuningSchedule(phases), *callbacks, folder=tmp_path).fit(module, data)
        return module

    caching = FeatureCaching(folder=tmp_path / "cache", fast=False)
    plain, cached = run(), run(caching)
    assert furthest(plain, cached) == 0
    assert torch.equal(plain.confusion["val"], cached.confusion["val"])
    assert len(list_entries(tmp_path / "cache")) == 2


def test_balanced_sampling_is_served(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    for number in range(3, 8):
        (tmp_path / "photos/train/red" / f"{number}.png").unlink()

    def run(*callbacks: Callback) -> ImageClassifier:
        torch.manual_seed(0)
        module = ImageClassifier(nn.Sequential(*Module().encoder, nn.Linear(16, 7)), None)
        given = {"augment": "none", "sampling": "balanced", "image_size": 16, "num_workers": 0}
        data = ImageFolderData(tmp_path / "photos", 4, **given)
        trainer(FinetuningSchedule("linear_probe"), *callbacks, folder=tmp_path).fit(module, data)
        return module

    assert furthest(run(), run(FeatureCaching(folder=tmp_path / "cache", fast=False))) == 0
    assert len(list_entries(tmp_path / "cache")) == 2


@pytest.mark.parametrize("step", [6, 10])
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_a_run_resumed_in_the_middle_of_an_epoch_goes_on_as_without(
    step: int, fit: Fit, caching: Any, tmp_path: Path
) -> None:
    """Plain DataLoaders keep no place; with 4 steps an epoch, step 10 lies behind the front's end."""
    phases: Any = [{"train": ["head"]}, {"at": {"epoch": 2}, "train": "all"}]
    files = tmp_path / "plain.ckpt", tmp_path / "cached.ckpt"
    fit(FinetuningSchedule(phases), SaveAt(files[0], step))
    fit(FinetuningSchedule(phases), caching(), SaveAt(files[1], step))
    ends = [
        fit(FinetuningSchedule(phases), *callbacks, ckpt_path=file)
        for file in files
        for callbacks in ((), (caching(),), (caching(), probe())[:1])
    ]
    assert all(furthest(ends[0], other) == 0 for other in ends[1:])


@pytest.mark.parametrize("last", [True, False])
def test_our_own_data_resumes_exactly_with_cached_features(last: bool, photos: Path, tmp_path: Path) -> None:
    def run(*callbacks: Callback, ckpt_path: Path | None = None) -> ImageClassifier:
        torch.manual_seed(0 if ckpt_path is None else 1)
        module = ImageClassifier(nn.Sequential(*Module().encoder, nn.Linear(16, 7)), None, head="mlp", dropout=0.2)
        data = ImageFolderData(photos, 4, augment="none", image_size=16, num_workers=0)
        own = [probe(), FeatureCaching(folder=tmp_path / "cache", fast=False)]
        listed = [*own, TolerantRestore()] if last else [TolerantRestore(), *own]
        trainer(*listed, *callbacks, folder=tmp_path).fit(module, data, ckpt_path=ckpt_path, weights_only=True)
        return module

    whole = run(SaveAt(tmp_path / "mid.ckpt", 6))
    assert furthest(whole, run(ckpt_path=tmp_path / "mid.ckpt")) == 0


def test_what_comes_after_the_fit_is_untouched(fit: Fit, caching: Any, tmp_path: Path) -> None:
    module, callback = Module(), caching()
    made = trainer(probe(), callback, folder=tmp_path)
    given = train_loader(), val_loader()
    made.fit(module, *given)
    assert made.train_dataloader.dataset is given[0].dataset
    assert [name for name, part in module.named_modules() if "forward" in part.__dict__] == []
    READS.value.zero_()
    losses = [made.validate(module, given[1], verbose=False), made.test(module, given[1], verbose=False)]
    assert losses[0][0]["val_loss"] == losses[1][0]["val_loss"]
    assert READS.value.item() == 2 * VAL
    assert len(made.predict(module, given[1])) == 3
    before, module.computed = READS.value.item(), 0
    made.fit_loop.max_epochs = 4
    made.fit(module, *given)
    assert READS.value.item() - before == LOOKED
    assert module.computed == 2 * LOOKED


def test_features_of_another_batch_size_are_taken_within_a_bound(fit: Fit, caching: Any) -> None:
    fit(probe(), caching(fast=True))
    READS.value.zero_()
    loaders = DataLoader(Images(TRAIN), 16, shuffle=True), DataLoader(Images(VAL, first=100), 16)
    plain = fit(probe(), train=loaders[0], val=loaders[1])
    READS.value.zero_()
    cached = fit(probe(), caching(fast=True), train=loaders[0], val=loaders[1])
    assert READS.value.item() == LOOKED
    assert furthest(plain, cached) <= 1e-5
    READS.value.zero_()
    fit(probe(), caching(), train=loaders[0], val=loaders[1])
    assert READS.value.item() > LOOKED, "fast=False makes its own"


class Hooked(Module):
    """Its front does what a copy without hooks does not."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder[1][0].register_forward_hook(lambda *given: given[2] * 1.5)


def test_features_are_computed_on_a_working_copy_where_that_gives_the_same(fit: Fit, caching: Any, told: Any) -> None:
    callback = caching(fast=True)
    copies: list[int] = []
    looking = LambdaCallback(on_train_epoch_end=lambda *_: copies.append(len(callback._run.front.copies)))
    cached = fit(probe(), callback, looking)
    computed = [text for text in told() if "computed on a copy" in text]
    assert [text.partition("copy, ")[2] for text in computed] == ["2 normalisation layers folded.", "the same one."]
    assert set(copies) == {0}, "weights that only filling needs are held no longer"
    plain = fit(probe())
    assert furthest(plain, cached) <= 1e-5
    assert cached.computed == 2 * LOOKED, "the front itself is run for the checks only"
    hooked = fit(probe(), caching(fast=True), module=Hooked())
    assert "computed without a working copy of encoder: a copy differs by" in " ".join(told())
    assert furthest(fit(probe(), module=Hooked()), hooked) == 0


class Workers(Callback):
    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen.append(trainer.train_dataloader.num_workers)


def test_a_fill_gives_back_the_memory_that_it_has_freed(
    fit: Fit, caching: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    monkeypatch.setattr("lit_transfer.features._heap._malloc_trim", lambda: given.append)
    fit(probe(), caching())
    assert len(given) >= 2, "for train and val"


def test_features_are_read_without_workers_and_images_with_them_again(fit: Fit, caching: Any) -> None:
    workers = Workers()
    phases: Any = [HEAD, {"at": {"epoch": 2}, "train": ["head", "stage1"]}]
    for kind, seen in (("shuffle", [0, 0, 2]), ("persistent", [0, 0, 2]), ("own generator", [2, 2, 2])):
        loaders = [{"train": train_loader(kind, 2), "val": val_loader(2)} for _ in range(2)]
        plain = fit(FinetuningSchedule(phases), **loaders[0])
        workers.seen = []
        cached = fit(FinetuningSchedule(phases), caching(fast=True), workers, **loaders[1])
        assert workers.seen == seen
        assert furthest(plain, cached) <= 1e-5


@pytest.mark.parametrize(("dtype", "bound"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_narrower_features_take_half_the_room_and_stay_within_their_bound(
    dtype: str, bound: float, fit: Fit, caching: Any, tmp_path: Path
) -> None:
    cached = fit(probe(), caching(dtype=dtype))
    plain = fit(probe())
    assert 0 < furthest(plain, cached) <= bound
    sizes = [(path / "features.bin").stat().st_size for path, _, _ in list_entries(tmp_path / "cache")]
    assert sorted(sizes) == [VAL * 16 * 2, TRAIN * 16 * 2]


def test_a_validation_set_of_other_shapes_is_served_beside_the_training_set(fit: Fit, caching: Any) -> None:
    phases: Any = [{"train": ["head", "stage1"]}]
    plain = fit(FinetuningSchedule(phases), val=val_loader(side=12))
    cached = fit(FinetuningSchedule(phases), caching(), val=val_loader(side=12))
    assert furthest(plain, cached) == 0
    assert plain.val_losses == cached.val_losses


class SeveralSets(Module):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.val_losses.append((dataloader_idx, self.loss(batch).item()))


def test_several_validation_sets_are_each_cached(fit: Fit, caching: Any, tmp_path: Path) -> None:
    sets = [val_loader(), DataLoader(Images(10, first=300), 4)]
    plain = fit(probe(), module=SeveralSets(), val=sets)
    cached = fit(probe(), caching(), module=SeveralSets(), val=sets)
    assert plain.val_losses == cached.val_losses
    assert sorted(about["split"] for _, about, _ in list_entries(tmp_path / "cache")) == ["train", "val", "val 1"]
