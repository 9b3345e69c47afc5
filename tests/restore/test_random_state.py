# ruff: noqa: NPY002  (numpy's old generator is the one that datasets draw from)
import io
import random

import numpy as np
import pytest
import torch

from lit_transfer.restore import capture_random_state, restore_random_state


def draw(device="cpu"):
    normal = random.gauss(0, 1), np.random.standard_normal()  # both keep a second number for the next call
    return [*normal, random.random(), np.random.rand(), *torch.rand(3, device=device).tolist()]


def saved(state):
    """Through a file, read without running anything in it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_what_is_drawn_after_the_capture_is_drawn_again():
    draw()
    state = saved(capture_random_state())
    first = draw()
    assert draw() != first
    assert restore_random_state(state)
    assert draw() == first


def test_a_state_of_another_kind_of_device_leaves_the_device_alone_and_says_so():
    state = {**capture_random_state(), "device": ["cuda", torch.zeros(16, dtype=torch.uint8)]}
    first = draw()
    assert not restore_random_state(state)
    assert draw() == first


def test_the_generator_of_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    state = saved(capture_random_state("cuda:0"))
    first = draw("cuda:0")
    assert restore_random_state(state, "cuda:0")
    assert draw("cuda:0") == first
    assert not restore_random_state(capture_random_state(), "cuda:0")
