import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Small tensors: a second thread only waits, for long where tests run side by side."""
    torch.set_num_threads(1)
