import json
import multiprocessing
import os
import pickle
import signal
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._pytree import tree_flatten
from torch.utils.data import DataLoader, Dataset

from lit_transfer.features import (
    CachedSamples,
    Filling,
    Layout,
    Outline,
    cache_folder,
    find_image,
    list_entries,
    open_entry,
    prepare,
    split_sample,
)

LAYOUT = Layout(rows=10, shape=(3, 2), dtype="float32", batches=4)
ROWS = [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]


def features(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(10, 3, 2, generator=torch.Generator().manual_seed(0)).to(dtype)


def fill(folder: Path, batches: Any, layout: Layout = LAYOUT, writer: int = 0) -> Filling:
    filling = Filling(folder, "key", writer)
    for number in batches:
        rows = ROWS[number]
        filling.write(number, rows, features()[rows], [json.dumps([row, f"sample {row}"]) for row in rows])
    filling.close()
    return filling


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_features_come_back_in_their_dtype_from_a_file_of_the_size_that_was_told(dtype: str, tmp_path: Path) -> None:
    layout = Layout(10, (3, 2), dtype, 4)
    assert prepare(tmp_path, "key", layout, {"split": "train"}) == 0
    assert open_entry(tmp_path, "key") is None, "not before it is whole"
    entry = fill(tmp_path, range(4)).finish()
    assert torch.equal(torch.stack([entry.feature(row) for row in range(10)]), features(getattr(torch, dtype)))
    assert [entry.rest(row) for row in (0, 9)] == [[0, "sample 0"], [9, "sample 9"]]
    assert (tmp_path / "key" / "features.bin").stat().st_size == layout.size
    assert sorted(path.name for path in (tmp_path / "key").iterdir()) == [
        "about.json",
        "features.bin",
        "rest.idx",
        "rest.jsonl",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_an_interrupted_filling_goes_on_where_it_stopped(tmp_path: Path) -> None:
    prepare(tmp_path, "key", LAYOUT, {})
    fill(tmp_path, [0, 2])
    with (tmp_path / "key.part" / "rest.0.jsonl").open("ab") as file:
        file.write(b'3 [3, "torn')
    assert prepare(tmp_path, "key", LAYOUT, {}) == 0.5
    assert list_entries(tmp_path)[0][2] == 0.5
    filling = Filling(tmp_path, "key")
    assert filling.pending() == [1, 3]
    with pytest.raises(RuntimeError, match=r"2 batches of .* were not written"):
        filling.finish()
    filling.close()
    entry = fill(tmp_path, [1, 3], writer=1).finish()
    assert [entry.rest(row)[0] for row in range(10)] == list(range(10))
    assert torch.equal(entry.feature(3), features()[3])


def test_an_unfinished_entry_of_another_layout_is_not_taken_up(tmp_path: Path) -> None:
    prepare(tmp_path, "key", LAYOUT, {})
    fill(tmp_path, [0])
    assert prepare(tmp_path, "key", Layout(10, (3, 2), "float16", 4), {}) == 0


def fill_and_die(folder: Path) -> None:
    filling = Filling(folder, "key")
    for number in (0, 1):
        filling.write(number, ROWS[number], features()[ROWS[number]], ["[]"] * 3)
        filling.sync()
    filling.write(2, ROWS[2], features()[ROWS[2]], ["[]"] * 3)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_filling_loses_only_what_was_not_synced(tmp_path: Path) -> None:
    prepare(tmp_path, "key", LAYOUT, {})
    process = multiprocessing.get_context("fork").Process(target=fill_and_die, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert prepare(tmp_path, "key", LAYOUT, {}) == 0.5
    entry = fill(tmp_path, [2, 3]).finish()
    assert torch.equal(torch.stack([entry.feature(row) for row in range(10)]), features())


def test_two_processes_write_one_entry_and_a_second_run_finds_it(tmp_path: Path) -> None:
    prepare(tmp_path, "key", LAYOUT, {})
    fill(tmp_path, [0, 2], writer=0)
    last = fill(tmp_path, [1, 3], writer=1)
    entry = last.finish()
    assert [entry.rest(row)[0] for row in range(10)] == list(range(10))
    assert last.finish().path == entry.path


@pytest.mark.parametrize("name", ["features.bin", "rest.idx"])
def test_a_damaged_entry_is_none(name: str, tmp_path: Path) -> None:
    prepare(tmp_path, "key", LAYOUT, {})
    fill(tmp_path, range(4)).finish()
    with (tmp_path / "key" / name).open("r+b") as file:
        file.truncate(8)
    assert open_entry(tmp_path, "key") is None


def test_what_does_not_fit_on_the_disk_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    huge = Layout(10**12, (512,), "float32", 10)
    with pytest.raises(OSError, match=r"take 2048000.0 GB, and .* GB left. Give dtype='float16'"):
        prepare(tmp_path / "new", "key", huge, {})
    assert not (tmp_path / "new").exists()


def test_features_of_another_shape_are_refused(tmp_path: Path) -> None:
    prepare(tmp_path, "key", LAYOUT, {})
    filling = Filling(tmp_path, "key")
    with pytest.raises(ValueError, match=r"sample 0 has features of shape \(3, 3\), the first one had \(3, 2\)"):
        filling.write(0, [0], torch.zeros(1, 3, 3), ["[]"])
    filling.close()


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LIT_TRANSFER_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "lit_transfer" / "features"
    monkeypatch.setenv("LIT_TRANSFER_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own" / "features"


# --- samples ----------------------------------------------------------------------------------------------------------

Pair = namedtuple("Pair", ["image", "label"])  # what users' datasets give

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.integers(0, 9).map(torch.tensor),
    st.lists(st.floats(width=32, allow_nan=False), max_size=3).map(torch.tensor),
    st.integers(0, 9).map(np.int64),
    st.lists(st.integers(0, 9), max_size=3).map(lambda values: np.array(values, np.uint8)),
)
RESTS = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2))


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor | np.ndarray):
        return type(one) is type(other) and one.dtype == other.dtype and np.array_equal(one, other)
    return type(one) is type(other) and one == other


class Listed(Dataset[Any]):
    def __init__(self, samples: list[Any]) -> None:
        self.samples, self.classes = samples, ["a", "b"]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("a cached sample is not drawn again")

    def __getitems__(self, indices: list[int]) -> Any:
        raise AssertionError("nor a batch of them")


def cached(folder: Path, samples: list[Any], image: int, views: int = 1) -> CachedSamples:
    layout = Layout(len(samples) * views, (2,), "float32", 1)
    structure = tree_flatten(samples[0])[1]
    prepare(folder, "key", layout, {})
    filling = Filling(folder, "key")
    rests = [split_sample(sample, structure, image) for _ in range(views) for sample in samples]
    numbers = torch.arange(len(rests), dtype=torch.float32)
    filling.write(0, range(len(rests)), torch.stack([numbers, -numbers], 1), rests)
    filling.close()
    outline = Outline((2, 5), (2,), torch.float32, (0, 1), {})
    return CachedSamples(filling.finish(), Listed(samples), structure, image, outline)


@settings(max_examples=40, deadline=None)
@given(rest=RESTS)
def test_the_rest_of_a_sample_is_as_it_was(rest: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    sample = {"image": torch.zeros(2, 5), "rest": rest}
    back = cached(tmp_path_factory.mktemp("entry"), [sample], image=0)[0]
    assert torch.equal(back["image"], torch.tensor([0.0, -0.0]))
    ours, theirs = tree_flatten(rest), tree_flatten(back["rest"])
    assert ours[1] == theirs[1]
    assert all(same(one, other) for one, other in zip(ours[0], theirs[0], strict=True))


def test_samples_keep_their_kind_length_keys_and_attributes_in_worker_processes(tmp_path: Path) -> None:
    data = cached(tmp_path, [Pair(torch.zeros(2, 5), number % 2) for number in range(6)], image=0)
    assert len(data) == 6
    assert isinstance(data[5], Pair)
    assert torch.equal(data[-1].image, torch.tensor([5.0, -5.0]))
    assert data[2, 7].label == 0
    assert data.classes == ["a", "b"]
    assert [(int(image[0]), label) for image, label in data.__getitems__([1, (2, 7), -1])] == [(1, 1), (2, 0), (5, 1)]
    with pytest.raises(IndexError):
        data[6]
    assert "_features" not in pickle.loads(pickle.dumps(data)).entry.__dict__
    for workers in (0, 1):
        loader = DataLoader(data, 3, num_workers=workers)
        images, labels = zip(*loader, strict=True)
        assert torch.equal(torch.cat(images)[:, 0], torch.arange(6.0))
        assert torch.equal(torch.cat(labels), torch.arange(6) % 2)


def test_of_several_views_one_is_drawn_or_they_take_turns_by_the_epoch(tmp_path: Path) -> None:
    data = cached(tmp_path, [(torch.zeros(2, 5), 0)] * 4, image=0, views=3)
    assert {int(data[1][0][0]) for _ in range(50)} == {1, 5, 9}
    turns = [[int(data[index, epoch][0][0]) // 4 for epoch in range(3)] for index in range(4)]
    assert all(sorted(turn) == [0, 1, 2] for turn in turns)
    assert len({tuple(turn) for turn in turns}) > 1


def test_the_image_is_found_by_its_values() -> None:
    samples = [{"label": torch.tensor([number]), "x": torch.randn(3, 4)} for number in range(3)]
    found = find_image(samples, torch.stack([sample["x"] for sample in samples]))
    assert found is not None
    assert found[1] == 1
    assert find_image(samples, torch.stack([sample["x"] + 1 for sample in samples])) is None
    assert find_image(samples, torch.stack([sample["x"] for sample in samples]).to(torch.bfloat16)) is not None
    arrays = [(sample["x"].numpy(), 0) for sample in samples]
    assert find_image(arrays, torch.stack([sample["x"] for sample in samples])) is not None


def test_what_cannot_be_kept_exactly_is_refused() -> None:
    structure = tree_flatten((0, 0))[1]
    with pytest.raises(TypeError, match="a sample holds a PosixPath besides the image"):
        split_sample((torch.zeros(1), Path("x")), structure, 0)
    with pytest.raises(ValueError, match="samples differ in how they are nested"):
        split_sample((torch.zeros(1), [1, 2]), structure, 0)
