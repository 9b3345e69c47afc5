# ruff: noqa: NPY002  (numpy's old generator is one of those that transforms draw from)
import random

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from lit_transfer.data._dataset import LabelledImages
from lit_transfer.data._sampler import EpochSampler
from lit_transfer.data._seeding import seeded, stable_hash


def grey(shade):
    return Image.new("L", (2, 2), shade)


def noisy(image):
    """Draw from all three generators that transforms draw from."""
    noise = [torch.rand(1).item(), random.random(), np.random.rand()]
    return torch.tensor([image.getpixel((0, 0)), *noise], dtype=torch.float64)


def noisy_set(seed=0):
    return LabelledImages([(n, n % 2) for n in range(24)], ["even", "odd"], read=grey, transform=noisy, seed=seed)


def epoch_batches(workers, epoch=0, seed=0):
    loader = DataLoader(noisy_set(seed), 5, sampler=EpochSampler(24, 5, seed=seed), num_workers=workers)
    loader.sampler.set_epoch(epoch)
    return [images for images, _ in loader]


def equal(one, other):
    return len(one) == len(other) and all(map(torch.equal, one, other))


def test_batches_are_the_same_bits_with_and_without_workers():
    """Batch size 5, float64, CPU, no workers and 2 workers."""
    torch.manual_seed(1)
    alone = epoch_batches(0)
    torch.manual_seed(2)
    random.seed(2)
    assert equal(alone, epoch_batches(2))


def test_another_epoch_or_seed_draws_anew_and_the_same_draws_alike():
    def draws(**choice):
        return {tuple(row.tolist()) for batch in epoch_batches(0, **choice) for row in batch}

    assert draws() == draws()
    assert not draws(epoch=1) & draws()
    assert not draws(seed=1) & draws()


def test_two_samples_of_an_epoch_draw_differently():
    dataset = noisy_set()
    assert len({float(dataset[n][0][1]) for n in range(24)}) == 24


def test_a_plain_index_means_epoch_0():
    dataset = noisy_set()
    assert torch.equal(dataset[3][0], dataset[3, 0][0])
    assert not torch.equal(dataset[3][0], dataset[3, 1][0])


def test_loading_leaves_the_generators_as_they_were():
    def draw():
        return torch.rand(1).item(), random.random(), np.random.rand(), np.random.randn()

    def seed():
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)

    seed()
    expected = [draw(), draw()]
    seed()
    got = [draw()]
    noisy_set()[5]
    got.append(draw())
    assert got == expected


def test_generators_are_put_back_after_an_error():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    try:
        with seeded(1):
            raise KeyError  # noqa: TRY301 (as a transform would)
    except KeyError:
        assert torch.equal(torch.get_rng_state(), before)


def test_a_hash_is_the_same_in_every_process_and_version():
    assert stable_hash("split", 0, "ants/1.jpg") == 8596696954778286208
    assert stable_hash(1, 23) != stable_hash(12, 3)
    assert 0 <= stable_hash("é") < 2**63


def test_the_attributes_are_those_of_image_folder():
    dataset = noisy_set()
    assert dataset.classes == ["even", "odd"]
    assert dataset.class_to_idx == {"even": 0, "odd": 1}
    assert dataset.samples[:2] == [(0, 0), (1, 1)]
    assert dataset.targets[:3] == [0, 1, 0]
    assert len(dataset) == 24
