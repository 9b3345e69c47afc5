import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_transfer.features import FirstDraw, is_random, probe


@given(length=st.integers(1, 5000))
def test_probes_are_spread_over_the_dataset(length: int) -> None:
    indices = probe(length)
    count = len(indices)
    assert count == len(set(indices)) == min(64, length)
    assert indices[0] == 0
    assert length - indices[-1] <= length // count + 1
    assert max(indices) < length


def test_draws_of_a_batch_are_compared_value_for_value() -> None:
    images = torch.randn(4, 2)
    assert not is_random(lambda draw: images)
    assert is_random(lambda draw: images + (draw == 7) * 1e-6)


def test_a_draw_that_overwrites_its_own_batch_is_noticed() -> None:
    buffer = torch.zeros(2)
    assert is_random(lambda draw: buffer.fill_(draw))


def test_samples_are_compared_with_their_own_first_draw() -> None:
    images, first = torch.randn(4, 3, 2), FirstDraw()
    first.note([2, 5, 7, 9], images)
    assert not first.differs([9, 2, 1], images[[3, 0, 1]].contiguous(memory_format=torch.contiguous_format))
    assert not first.differs([0, 1], torch.zeros(2, 3, 2))
    assert first.differs([1, 2], images[[0, 1]])
