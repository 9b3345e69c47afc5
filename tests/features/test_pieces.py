"""CPU, float32."""

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_transfer.features._pieces import in_pieces, pieces

SIZES = [
    ((20, 3, 224, 224), [8, 8, 4]),  # of what a network is mostly given
    ((5, 3, 1024, 1024), [4, 1]),  # never less than 4
    ((64, 3, 32, 32), [64]),  # small ones cost more to start than to compute
]


@pytest.mark.parametrize(("shape", "sizes"), SIZES)
def test_a_processor_is_given_pieces_of_a_batch(shape: tuple[int, ...], sizes: list[int]) -> None:
    images = torch.rand(shape)
    assert [len(piece) for piece in pieces(images)] == sizes
    assert torch.equal(in_pieces(lambda piece: piece * 2, images, together=False), images * 2)


def test_elsewhere_a_batch_stays_whole() -> None:
    images = torch.rand(20, 3, 224, 224, device="meta")
    assert pieces(images)[0] is images


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_each_piece_is_computed_on_one_thread_in_the_mode_of_the_caller(mode: type, threads: Any) -> None:
    seen = []

    def compute(piece: Tensor) -> Tensor:
        seen.append(
            (
                torch.get_num_threads(),
                threading.current_thread() is threading.main_thread(),
                torch.is_grad_enabled(),
                torch.is_inference_mode_enabled(),
            )
        )
        return piece * 2

    images = torch.rand(32, 3, 224, 224)
    with threads(2), mode():
        assert torch.equal(in_pieces(compute, images, together=True), images * 2)
        assert torch.get_num_threads() == 2
        expected = (1, False, torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    assert seen == [expected] * 4


def test_pieces_that_are_fewer_than_threads_share_them(threads: Any) -> None:
    seen = []

    def compute(piece: Tensor) -> Tensor:
        seen.append(torch.get_num_threads())
        return piece

    with threads(3):
        in_pieces(compute, torch.rand(16, 3, 224, 224), together=True)
    assert seen == [3, 3]


def test_under_autocast_the_caller_computes(threads: Any) -> None:
    dtypes = []

    def compute(piece: Tensor) -> Tensor:
        dtypes.append((piece.flatten(1) @ piece.flatten(1).T).dtype)
        return piece

    with threads(2), torch.autocast("cpu", torch.bfloat16):
        in_pieces(compute, torch.rand(16, 3, 224, 224), together=True)
    assert dtypes == [torch.bfloat16] * 2


def test_an_error_in_a_piece_is_the_callers_and_the_threads_are_as_before(threads: Any) -> None:
    def compute(piece: Tensor) -> Tensor:
        raise ArithmeticError("no")

    with threads(2):
        with pytest.raises(ArithmeticError, match="no"):
            in_pieces(compute, torch.rand(32, 3, 224, 224), together=True)
        assert torch.get_num_threads() == 2
