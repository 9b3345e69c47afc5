"""What is said to be equal is so bit for bit: batches of 8 with `drop_last`, float32, one thread, CPU, `fast=False`."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cached_module import READS, TRAIN, VAL, Counter, Images, Module, furthest, train_loader, trainer, val_loader
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lit_transfer import freeze
from lit_transfer.callbacks import FeatureCaching, FinetuningSchedule, TolerantRestore
from lit_transfer.data import ImageFolderData
from lit_transfer.features import list_entries
from lit_transfer.modules import ImageClassifier

pytestmark = pytest.mark.filterwarnings("ignore:Found .* in eval mode")  # frozen by hand in some tests
LOOKED = 2 * 4  # samples that each run draws to look at, of both sets
TWICE = TRAIN + VAL  # samples that are drawn twice when both sets are filled, having fewer than 64 each
Fit = Callable[..., Module]


@pytest.fixture(autouse=True)
def reads() -> None:
    READS.value.zero_()


@pytest.fixture
def fit(tmp_path: Path) -> Fit:
    """Fit a fresh module with the head alone, on the same random numbers each time."""

    def run(*callbacks: Callback, train: Any = None, val: Any = None, module: Any = None, **options: Any) -> Module:
        module = module or Module()
        arguments = {name: options.pop(name) for name in ("ckpt_path",) if name in options}
        made = trainer(*callbacks, folder=tmp_path, **options)
        torch.manual_seed(7)
        made.fit(module, train_loader() if train is None else train, val_loader() if val is None else val, **arguments)
        return module

    return run


@pytest.fixture
def caching(tmp_path: Path) -> Callable[..., FeatureCaching]:
    return lambda **options: FeatureCaching("encoder", **{"fast": False, "folder": tmp_path / "cache"} | options)


def probe() -> FinetuningSchedule:
    return FinetuningSchedule("linear_probe")


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


class SaveAt(Callback):
    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


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


def test_features_are_computed_on_a_working_copy_where_that_gives_the_same(
    fit: Fit, caching: Any, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("lightning.pytorch")
    logger.addHandler(caplog.handler)
    cached = fit(probe(), caching(fast=True))
    assert "computed on a copy, 2 normalisation layers folded" in caplog.text
    plain = fit(probe())
    assert furthest(plain, cached) <= 1e-5
    assert cached.computed == 2 * LOOKED, "the front itself is run for the checks only"
    hooked = fit(probe(), caching(fast=True), module=Hooked())
    logger.removeHandler(caplog.handler)
    assert "computed without a working copy of encoder: a copy differs by" in caplog.text
    assert furthest(fit(probe(), module=Hooked()), hooked) == 0


class Workers(Callback):
    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen.append(trainer.train_dataloader.num_workers)


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


# --- what is noticed --------------------------------------------------------------------------------------------------


def test_changed_weights_data_and_front_are_computed_anew(fit: Fit, caching: Any, tmp_path: Path) -> None:
    changed = Module()
    with torch.no_grad():
        changed.encoder[0][0].weight[0, 0, 0, 0] += 1
    fit(probe(), caching())
    for options in ({"module": changed}, {"train": train_loader(first=1)}, {"train": train_loader(side=9)}):
        before = len(list_entries(tmp_path / "cache"))
        fit(probe(), caching(), **options)
        assert len(list_entries(tmp_path / "cache")) > before


def test_an_entry_whose_features_are_not_what_the_front_gives_is_not_used(
    fit: Fit, caching: Any, tmp_path: Path
) -> None:
    plain = fit(probe())
    fit(probe(), caching())
    for path, about, _ in list_entries(tmp_path / "cache"):
        (path / "features.bin").write_bytes(bytes(about["layout"]["rows"] * 64))
    assert furthest(plain, fit(probe(), caching())) == 0


FAILS = Counter()


class Failing(Images):
    """Stops at sample 25 when features are computed: it is read for the second time then."""

    stop: Any = None

    def __getitem__(self, index: int) -> Any:
        if index == 25 and FAILS.value and READS.value > LOOKED + VAL + TWICE:
            raise self.stop("torn")
        return super().__getitem__(index)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Failing, (self.count,)


@pytest.mark.parametrize("stop", [RuntimeError, SystemExit])
def test_an_interrupted_fill_goes_on_where_it_stopped(stop: Any, fit: Fit, caching: Any, tmp_path: Path) -> None:
    data = Failing(TRAIN)
    data.stop = stop
    FAILS.value.fill_(1)
    loader = DataLoader(data, 8, shuffle=True, drop_last=True)
    module = Module()
    with pytest.raises(stop, match="torn"):
        fit(probe(), caching(), train=loader, module=module)
    assert [name for name, part in module.named_modules() if "forward" in part.__dict__] == []
    assert module.__dict__.get("log") is None
    done = {about["split"]: share for _, about, share in list_entries(tmp_path / "cache")}
    assert done == {"val": 1.0, "train": 3 / 5}
    FAILS.value.zero_()
    READS.value.zero_()
    plain = fit(probe(), train=loader)
    READS.value.zero_()
    assert furthest(plain, fit(probe(), caching(), train=loader)) == 0
    assert READS.value.item() == LOOKED + 2 * 8 + 13, "the last two batches, their own samples drawn twice"


def test_augmented_images_are_refused_with_advice_and_cached_in_views(fit: Fit, caching: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"The train samples differ .*FeatureCaching\(views=8\), .*\(views=0\)"):
        fit(probe(), caching(), train=train_loader(noise=0.1))
    with pytest.raises(ValueError, match=r"The val samples differ .* Validate without random transforms"):
        fit(probe(), caching(views=8), val=val_loader(noise=0.1))
    READS.value.zero_()
    cached = fit(probe(), caching(views=3), train=train_loader(noise=0.1), max_epochs=9)
    assert READS.value.item() == LOOKED + 3 * 40, "the validation features were there"
    assert furthest(cached, fit(probe(), caching(), max_epochs=9)) < 0.2
    rows = {about["split"]: about["layout"]["rows"] for _, about, _ in list_entries(tmp_path / "cache")}
    assert rows == {"val": VAL, "train": 3 * TRAIN} or rows["val"] == VAL


def test_augmentation_that_is_seeded_by_the_epoch_is_noticed(photos: Path, tmp_path: Path) -> None:
    def run(**options: Any) -> None:
        module = ImageClassifier(nn.Sequential(*Module().encoder, nn.Linear(16, 7)), None)
        data = ImageFolderData(photos, 4, image_size=16, num_workers=0)
        trainer(probe(), FeatureCaching(folder=tmp_path / "cache", **options), folder=tmp_path).fit(module, data)

    with pytest.raises(ValueError, match=r"The train samples differ each time"):
        run()
    run(views=2)


class Transferred(Module):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return {**batch, "image": batch["image"] * 2}


class Augmented(Module):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        flipped = torch.rand(len(batch["image"])) < 0.5
        batch["image"][flipped] = batch["image"][flipped].flip(-1)
        return batch


class Unused(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.head(torch.zeros(8, 16)).sum()


class Skipping(Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Skip(*self.encoder)


class Skip(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0 * x.mean()


class Shaped(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        _, _channels, _height, _width = batch["image"].shape
        return self.loss(batch)


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([Images(1)[0]])


REFUSED: list[tuple[Any, Any, str]] = [
    (Transferred, {}, "the train images reach encoder other than the dataset gives them: .* on_after_batch_transfer"),
    (Augmented, {}, "takes of the same train samples differs each time: .* a transfer hook or the step augments"),
    (Unused, {}, r"the backbone \(Sequential\) was not called"),
    (Shaped, {}, r"The step cannot take the features of encoder, of shape \(16,\), .* not enough values to unpack"),
    (Module, {"train": DataLoader(Endless(), 1)}, "train samples cannot be cached: .* its dataset is a Endless"),
    (Module, {"train": [train_loader(), train_loader()]}, "takes one loader of training data; got several"),
]


@pytest.mark.parametrize(("kind", "loaders", "message"), REFUSED)
def test_what_would_not_give_the_same_is_refused(kind: Any, loaders: Any, message: str, fit: Fit, caching: Any) -> None:
    module = kind()
    module.encoder.requires_grad_(False).eval()
    module.configure_optimizers = lambda: torch.optim.SGD(module.head.parameters(), 0.1)
    with pytest.raises(ValueError, match=f"(?is){message}"):
        fit(caching(), module=module, num_sanity_val_steps=0, **loaders)
    assert "log" not in module.__dict__


def test_two_tensors_across_the_boundary_are_refused(fit: Fit, caching: Any) -> None:
    module = Skipping()
    freeze(module, "encoder.0")
    with pytest.raises(ValueError, match=r"From the output of encoder\.0.* more than one tensor crosses"):
        fit(caching(), module=module)


def test_a_wrong_name_gets_the_nearest_and_wrong_options_are_refused(fit: Fit, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Module has no module 'enconder': .* Nearest: encoder"):
        fit(probe(), FeatureCaching("enconder", folder=tmp_path))
    with pytest.raises(ValueError, match="views must be at least 0, got -1"):
        FeatureCaching(views=-1)
    with pytest.raises(ValueError, match=r"views=0 .* fast=False excludes"):
        FeatureCaching(views=0, fast=False)
    with pytest.raises(ValueError, match=r"views=0 stores nothing, so that dtype='float16' means nothing"):
        FeatureCaching(views=0, dtype="float16")
    with pytest.raises(ValueError, match=r"fast must be True, False, 'compile' or 'bfloat16', got 'fp8'"):
        FeatureCaching(fast="fp8")  # type: ignore[arg-type]  # what a user may try
    with pytest.raises(ValueError, match=r"dtype must be .* got 'int8'"):
        FeatureCaching(dtype="int8")  # type: ignore[arg-type]  # what a user may try


def test_a_front_in_train_mode_is_refused(fit: Fit, caching: Any) -> None:
    module = Module()
    module.encoder.requires_grad_(False)
    with pytest.raises(ValueError, match=r"BatchNorm2d\) has no gradient but is in train mode"):
        fit(caching(), module=module)


class Unfreezes(Callback):
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            pl_module.encoder.requires_grad_(True)


def test_another_callback_that_unfreezes_is_followed_or_refused(fit: Fit, caching: Any) -> None:
    def module() -> Module:
        made = Module()
        made.encoder.requires_grad_(False).eval()
        return made

    assert furthest(fit(Unfreezes(), module=module()), fit(Unfreezes(), caching(), module=module())) == 0
    with pytest.raises(ValueError, match=r"encoder.0.0.weight was unfrozen after FeatureCaching had looked"):
        fit(caching(), Unfreezes(), module=module())


def test_weights_that_change_though_they_are_frozen_end_the_caching(fit: Fit, caching: Any) -> None:
    class Moves(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            with torch.no_grad():
                pl_module.encoder[0][0].weight.mul_(1.5)

    assert furthest(fit(probe(), Moves()), fit(probe(), Moves(), caching())) == 0


def test_data_that_no_later_run_can_recognise_is_kept_for_one_run(fit: Fit, caching: Any, tmp_path: Path) -> None:
    train = train_loader()
    train.dataset.file = (tmp_path / "open").open("wb")
    fit(probe(), caching(), train=train)
    train.dataset.file.close()
    assert [about["split"] for _, about, _ in list_entries(tmp_path / "cache")] == ["val"]
