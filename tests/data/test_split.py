import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_transfer.data._split import check_fractions, stratified_split

classes = st.lists(st.integers(3, 40), min_size=1, max_size=4).map(
    lambda sizes: [target for target, size in enumerate(sizes) for _ in range(size)]
)
fractions = st.lists(st.floats(0, 0.9), min_size=1, max_size=2).filter(lambda shares: sum(shares) < 1)


def names(targets):
    return [f"class{target}/{index}.jpg" for index, target in enumerate(targets)]


@settings(deadline=None)
@given(classes, fractions, st.integers(0, 2**31))
def test_everything_is_covered_once_and_each_class_in_proportion(targets, shares, seed):
    parts = stratified_split(names(targets), targets, shares, seed=seed)
    assert sorted(index for part in parts for index in part) == list(range(len(targets)))
    for target, size in Counter(targets).items():
        counts = [sum(targets[index] == target for index in part) for part in parts]
        assert counts[-1] >= 1
        for share, count in zip(shares, counts, strict=False):
            assert (count >= 1) == (share > 0)
            assert abs(count - share * size) <= len(shares)  # room for one sample of each other part


@settings(deadline=None)
@given(classes, fractions, st.integers(0, 2**31), st.randoms())
def test_the_split_does_not_depend_on_the_order_of_the_samples(targets, shares, seed, shuffler: random.Random):
    keys = names(targets)
    order = list(range(len(keys)))
    shuffler.shuffle(order)
    parts = stratified_split(keys, targets, shares, seed=seed)
    shuffled = stratified_split([keys[i] for i in order], [targets[i] for i in order], shares, seed=seed)
    assert [{keys[i] for i in part} for part in parts] == [{keys[order[i]] for i in part} for part in shuffled]


def test_another_seed_gives_another_split():
    targets = [0] * 50 + [1] * 50
    split = stratified_split(names(targets), targets, [0.3], seed=1)
    assert split == stratified_split(names(targets), targets, [0.3], seed=1)
    assert split != stratified_split(names(targets), targets, [0.3], seed=2)


def test_a_sample_more_moves_few():
    targets = [0] * 100
    before = stratified_split(names(targets), targets, [0.2], seed=0)[0]
    after = stratified_split([*names(targets), "new.jpg"], [*targets, 0], [0.2], seed=0)[0]
    assert len(set(before) & set(after)) >= len(before) - 1


def test_a_class_too_small_is_refused():
    with pytest.raises(ValueError, match="class 1 has 2 samples, too few for 3 parts"):
        stratified_split(names([0, 0, 0, 1, 1]), [0, 0, 0, 1, 1], [0.2, 0.2], seed=0)


@pytest.mark.parametrize(
    ("val", "test", "message"),
    [
        (1.0, 0.0, r"data\.val_fraction .* below 1; got 1\.0"),
        (0.2, -0.1, r"data\.test_fraction .* at least 0 and below 1; got -0\.1"),
        (0.6, 0.4, r"data\.val_fraction and data\.test_fraction leave nothing .* got 0\.6 \+ 0\.4"),
    ],
)
def test_shares_that_leave_nothing_are_refused(val, test, message):
    with pytest.raises(ValueError, match=message):
        check_fractions(val, test)
