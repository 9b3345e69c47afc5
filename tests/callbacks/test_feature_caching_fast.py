"""Copies of the front that are made for inference: batches of 8, float32, one thread, CPU; bounds as stated."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cached_module import READS, TRAIN, Module, furthest, train_loader, trainer, val_loader
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from lit_transfer.callbacks import FeatureCaching, FinetuningSchedule
from lit_transfer.features import list_entries

HEAD: Any = {"train": ["head"]}
Run = Callable[..., Module]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Fit a fresh module on the same random numbers each time."""

    def fit(phases: Any, *callbacks: Callback, kind_of: Any = Module, train: Any = None, **options: Any) -> Module:
        READS.value.zero_()
        module = kind_of()
        made = trainer(FinetuningSchedule(phases), *callbacks, folder=tmp_path, **options)
        torch.manual_seed(7)
        made.fit(module, train or train_loader(), val_loader())
        return module

    return fit


@pytest.fixture
def caching(tmp_path: Path) -> Callable[..., FeatureCaching]:
    return lambda **options: FeatureCaching("encoder", **{"folder": tmp_path / "cache"} | options)


def test_without_a_store_augmented_images_run_through_a_copy(run: Run, caching: Any, told: Any, tmp_path: Path) -> None:
    plain = run([HEAD], train=train_loader(noise=0.1))
    read = READS.value.item()
    faster = run([HEAD], caching(views=0), train=train_loader(noise=0.1))
    assert 0 < furthest(plain, faster) <= 1e-5
    assert READS.value.item() == read
    # The validation before the training and two runs to compare: the front itself computes nothing else.
    assert faster.computed == 16 + 2 * 8
    assert told() == ["FeatureCaching: from epoch 0, step 0 on encoder runs on a copy: 2 normalisation layers folded."]
    assert list_entries(tmp_path / "cache") == []
    assert [name for name, part in faster.named_modules() if "forward" in part.__dict__] == []


@pytest.mark.parametrize("first", [True, False])
def test_a_copy_is_dropped_when_its_front_trains_in_the_middle_of_an_epoch(
    first: bool, caching: Any, told: Any, tmp_path: Path
) -> None:
    phases: Any = [HEAD, {"at": {"step": 6}, "train": ["head", "stage1"]}, {"at": {"step": 9}, "train": "all"}]
    ends = []
    for views in (None, 0):
        module = Module()
        callbacks: list[Callback] = [FinetuningSchedule(phases)] + ([caching(views=0)] if views == 0 else [])
        made = trainer(*(callbacks if first else reversed(callbacks)), folder=tmp_path)
        torch.manual_seed(7)
        made.fit(module, train_loader(), val_loader())
        ends.append(module)
    assert 0 < furthest(*ends) <= 1e-5
    late = 0 if first else 1  # before the schedule, it sees what trains in the next step
    assert [text.split(": ")[1] for text in told()] == [
        "from epoch 0, step 0 on encoder runs on a copy",
        f"from epoch 1, step {6 + late} on encoder.0 runs on a copy",
        f"from epoch 2, step {9 + late} on the first stage of encoder trains",
    ]


class Hooked(Module):
    """Its front does what a copy without hooks does not."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder[1][0].register_forward_hook(lambda *given: given[2] * 1.5)


class Branching(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.mean() > -10 else x


class Untraceable(Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Branching(*self.encoder)


class Moving(Callback):
    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        with torch.no_grad():
            pl_module.encoder[0][0].weight.mul_(1.5)


@pytest.mark.parametrize(
    ("kind", "why"),
    [(Hooked, "a copy differs by .* more than 0.0001"), (Untraceable, "none could be: TraceError")],
)
def test_where_a_copy_is_not_the_same_the_front_runs_as_ever(
    kind: Any, why: str, run: Run, caching: Any, told: Any
) -> None:
    plain = run([HEAD], kind_of=kind)
    faster = run([HEAD], caching(views=0), kind_of=kind)
    assert furthest(plain, faster) == 0
    assert len(told()) == 1
    assert re.search(rf"encoder runs as it is for images of shape .*{why}", told()[0])


def test_weights_that_change_though_they_are_frozen_are_used_as_they_are(run: Run, caching: Any, told: Any) -> None:
    plain = run([HEAD], Moving())
    assert furthest(plain, run([HEAD], Moving(), caching(views=0))) <= 1e-5
    assert "weights of encoder have changed: from epoch 1, step 4 on it runs as it is" in told()[-1]


def test_bfloat16_stays_within_its_bound_and_its_features_are_kept_apart(
    run: Run, caching: Any, told: Any, tmp_path: Path
) -> None:
    plain = run([HEAD])
    run([HEAD], caching())
    narrow = run([HEAD], caching(fast="bfloat16"))
    assert 1e-5 < furthest(plain, narrow) <= 4e-2
    assert READS.value.item() > 2 * TRAIN, "those of float32 are not taken"
    assert "computed on a copy, 2 normalisation layers folded, in bfloat16" in " ".join(told())
    assert len(list_entries(tmp_path / "cache")) == 4
    run([HEAD], caching(fast="bfloat16"))
    assert READS.value.item() == 8
    assert 1e-5 < furthest(plain, run([HEAD], caching(views=0, fast="bfloat16"))) <= 4e-2


def test_the_copy_is_compiled_for_whole_batches(run: Run, caching: Any, told: Any) -> None:
    plain = run([HEAD])
    run([HEAD], caching(), train=train_loader(first=1), max_epochs=1)  # the validation set is stored by this
    assert furthest(plain, run([HEAD], caching(fast="compile"))) <= 1e-5
    assert sum("2 normalisation layers folded, compiled for batches of 8" in text for text in told()) == 1


def test_without_a_compiler_nothing_is_filled(run: Run, caching: Any, tmp_path: Path) -> None:
    from torch._inductor import config, cpp_builder

    cpp_builder.cpp_compiler_search.cache_clear()
    refused = pytest.raises(FileNotFoundError, match=r"needs a C\+\+ compiler, .* g\+\+ .* CXX, or choose fast=True")
    with config.patch({"cpp.cxx": ("no-such-compiler",)}), refused:  # monkeypatch would leave the option hidden
        run([HEAD], caching(fast="compile"))
    cpp_builder.cpp_compiler_search.cache_clear()
    assert list_entries(tmp_path / "cache") == []
