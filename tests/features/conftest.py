"""The number of threads that torch computes with."""

import contextlib
from collections.abc import Callable, Iterator

import pytest
import torch

Threads = Callable[[int], contextlib.AbstractContextManager[None]]


@pytest.fixture
def threads() -> Threads:
    """Compute with so many threads for a while."""

    @contextlib.contextmanager
    def change(number: int) -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(number)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    return change
