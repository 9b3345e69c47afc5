"""Over a move of the boundary all stays equal bit for bit: batches of 8, float32, one thread, CPU, `fast=False`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cached_module import LOOKED, READS, TRAIN, VAL, Module, SaveAt, furthest, train_loader, trainer, val_loader
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from lit_transfer.callbacks import FeatureCaching, FinetuningSchedule
from lit_transfer.features import list_entries

FILLED = 2 * (TRAIN + VAL) + 3  # samples that are drawn to fill both
HEAD: Any = {"train": ["head"]}
BOTH: Any = {"train": ["head", "stage1"]}
SHRINKS: Any = [HEAD, {"at": {"epoch": 2}, **BOTH}]
GROWS: Any = [BOTH, {"at": {"epoch": 2}, **HEAD}]
Run = Callable[..., Module]


class Reads(Callback):
    """How many images were read by the end of each epoch, its validation included."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        self.seen.append(READS.value.item())


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Fit a fresh module on the same random numbers each time."""

    def fit(phases: Any, *callbacks: Callback, **options: Any) -> Module:
        READS.value.zero_()
        module = options.pop("kind_of", Module)(options.pop("optimizer", torch.optim.SGD))
        kind, workers = options.pop("kind", "shuffle"), options.pop("workers", 0)
        loaders = options.pop("train", None) or train_loader(kind, workers), val_loader(workers)
        given = {"ckpt_path": options.pop("ckpt_path")} if "ckpt_path" in options else {}
        made = trainer(FinetuningSchedule(phases), *callbacks, folder=tmp_path, **{"max_epochs": 5} | options)
        torch.manual_seed(7)
        made.fit(module, *loaders, **given)
        return module

    return fit


@pytest.mark.parametrize(
    ("phases", "kind", "workers", "optimizer"),
    [
        (SHRINKS, "shuffle", 0, torch.optim.AdamW),
        (SHRINKS, "weighted", 2, torch.optim.SGD),
        (GROWS, "own generator", 2, torch.optim.AdamW),
        (GROWS, "weighted", 0, torch.optim.SGD),
    ],
)
def test_the_training_ends_where_it_ends_without_and_images_are_read_once_for_each_boundary(
    phases: Any, kind: str, workers: int, optimizer: Any, run: Run, caching: Any, told: Any
) -> None:
    reads, options = Reads(), {"kind": kind, "workers": workers, "optimizer": optimizer}
    plain = run(phases, **options)
    cached = run(phases, caching(), reads, **options)
    assert furthest(plain, cached) == 0
    assert plain.val_losses == cached.val_losses
    first = LOOKED + FILLED
    # The longer front is computed from what the shorter one gave: a few samples of both are looked at anew.
    second = FILLED + LOOKED if phases is SHRINKS else 2 * LOOKED
    assert reads.seen == [first, first, *[first + second] * 3]
    where = "encoder.0" if phases is SHRINKS else "encoder"
    assert [text for text in told() if f"from epoch 2 on features of {where} are served" in text]
    assert any("at encoder, from those at encoder.0" in text for text in told()) == (phases is GROWS)


def test_a_front_that_soon_moves_again_is_not_computed_anew_but_taken_where_it_is_stored(
    run: Run, caching: Any, told: Any
) -> None:
    phases: Any = [HEAD, {"at": {"epoch": 1}, **BOTH}, {"at": {"epoch": 2}, "train": "all"}]
    for stored in (False, True):
        reads = Reads()
        plain = run(phases, max_epochs=4)
        assert furthest(plain, run(phases, caching(), reads, max_epochs=4)) == 0
        assert (reads.seen[1] - reads.seen[0] >= TRAIN - 5 + VAL) is not stored
        assert reads.seen[2] - reads.seen[1] >= TRAIN - 5 + VAL, "images are used again"
        if not stored:
            assert "encoder takes images (encoder.0 stays frozen for less than 2 epochs" in told()[-2]
            run([BOTH], caching())
    assert "from epoch 1 on features of encoder.0 are served" in told()[-2]
    assert "from epoch 2 on encoder takes images (the first stage of encoder trains)" in told()[-1]


@pytest.mark.parametrize(
    ("phases", "options", "moves"),
    [
        (SHRINKS, {"max_epochs": 4}, True),
        (SHRINKS, {"max_epochs": 3}, False),
        (SHRINKS, {"max_epochs": -1, "max_steps": 16}, True),
        (SHRINKS, {"max_epochs": -1, "max_steps": 15}, False),
        (SHRINKS, {"limit_train_batches": 2}, True),
        (SHRINKS, {"limit_train_batches": 2, "max_epochs": 4}, False),  # a fill takes as long as two of its epochs
        ([HEAD, {"at": {"step": 6}, **BOTH}], {}, True),
        ([*SHRINKS, {"at": {"step": 14}, "train": "all"}], {}, False),
        ([{"train": "all"}, {"at": {"epoch": 1}, **HEAD}], {}, True),
    ],
)
def test_a_move_pays_if_the_front_then_holds_for_long_enough(
    phases: Any, options: Any, moves: bool, run: Run, caching: Any, tmp_path: Path
) -> None:
    plain = run(phases, **options)
    cached = run(phases, caching(), **options)
    assert furthest(plain, cached) == 0
    stored = {about["boundary"] for _, about, _ in list_entries(tmp_path / "cache")}
    last = "encoder" if phases[-1]["train"] == ["head"] else "encoder.0"
    assert (last in stored) == moves


@pytest.mark.parametrize("step", [6, 14])
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_a_run_resumed_in_the_middle_of_an_epoch_moves_as_without(
    step: int, run: Run, caching: Any, tmp_path: Path
) -> None:
    """There are 4 steps in an epoch, and the move is behind step 8."""
    files = tmp_path / "plain.ckpt", tmp_path / "cached.ckpt"
    run(SHRINKS, SaveAt(files[0], step))
    run(SHRINKS, caching(), SaveAt(files[1], step))
    fresh = FeatureCaching("encoder", fast=False, folder=tmp_path / "other")
    plain = run(SHRINKS, ckpt_path=files[0])
    for file, callback in ((files[0], caching()), (files[1], caching()), (files[1], fresh)):
        assert furthest(plain, run(SHRINKS, callback, ckpt_path=file)) == 0


def test_several_views_move_too(run: Run, caching: Any, tmp_path: Path) -> None:
    reads, phases = Reads(), [BOTH, {"at": {"epoch": 2}, **HEAD}]
    run(phases, caching(views=2), reads, train=train_loader(noise=0.1))
    assert len(set(reads.seen[2:])) == 1
    run(phases, caching(views=2), reads, train=train_loader(noise=0.1), max_epochs=4)
    listed = [(about["boundary"], about["split"], about["views"]) for _, about, _ in list_entries(tmp_path / "cache")]
    assert sorted(listed) == [
        ("encoder", "train", 2),
        ("encoder", "val", 1),
        ("encoder.0", "train", 2),
        ("encoder.0", "val", 1),
    ]


def test_what_is_computed_on_a_working_copy_from_stored_features_is_within_the_bound(
    run: Run, caching: Any, told: Any
) -> None:
    plain = run(GROWS)
    cached = run(GROWS, caching(fast=True))
    assert 0 < furthest(plain, cached) <= 1e-5
    assert any("at encoder, from those at encoder.0" in text for text in told())
    assert sum("computed on a copy" in text for text in told()) == 4


class Skip(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0 * x.mean()


class Skipping(Module):
    """Behind its first stage, the image is needed too."""

    def __init__(self, optimizer: Any) -> None:
        super().__init__(optimizer)
        self.encoder = Skip(*self.encoder)


def test_a_boundary_that_cannot_be_served_is_told_and_images_are_used(run: Run, caching: Any, told: Any) -> None:
    plain = run(SHRINKS, kind_of=Skipping)
    cached = run(SHRINKS, caching(), kind_of=Skipping)
    assert furthest(plain, cached) == 0
    assert "from epoch 2 on encoder takes images (From the output of encoder.0 alone" in told()[-1]
    assert len(told()) == 5
