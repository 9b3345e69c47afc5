import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_transfer.features import is_random, probe


@given(length=st.integers(1, 5000))
def test_probes_are_spread_over_the_dataset(length: int) -> None:
    indices = probe(length)
    assert len(set(indices)) == len(indices) == min(64, length)
    assert indices[0] == 0
    assert length - indices[-1] <= length // 64 + 1
    assert max(indices) < length


def test_two_draws_are_compared_value_for_value() -> None:
    images = [torch.randn(4, 2), torch.randn(3, 2)]
    assert not is_random(lambda draw: iter(images))
    assert is_random(lambda draw: [images[0], images[1] + draw * 1e-6])
    assert is_random(lambda draw: images[: 2 - draw])


def test_a_draw_that_overwrites_its_own_batch_is_noticed() -> None:
    buffer = torch.zeros(2)

    def draw(number: int) -> list[torch.Tensor]:
        return [buffer.fill_(number)]

    assert is_random(draw)
