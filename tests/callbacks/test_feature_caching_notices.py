"""What FeatureCaching notices: changes, randomness, what would not give the same, and options that are wrong."""

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
    Counter,
    Fit,
    Images,
    Module,
    furthest,
    probe,
    train_loader,
    trainer,
    val_loader,
)
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lit_transfer import freeze
from lit_transfer.callbacks import FeatureCaching
from lit_transfer.data import ImageFolderData
from lit_transfer.features import list_entries
from lit_transfer.modules import ImageClassifier

pytestmark = pytest.mark.filterwarnings("ignore:Found .* in eval mode")  # frozen by hand in some tests


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
