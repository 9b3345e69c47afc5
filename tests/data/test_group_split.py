"""Splits that keep groups whole and kinds in proportion, for any samples that hypothesis makes."""

import random
from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lit_transfer.data._group_split import group_split

samples = st.lists(
    st.tuples(st.integers(0, 12).map("patient{}".format), st.sets(st.integers(0, 3))), min_size=1, max_size=60
)
fractions = st.lists(st.floats(0, 0.9), min_size=1, max_size=2).filter(lambda shares: sum(shares) < 1)
seeds = st.integers(0, 2**31)


def split(rows, shares, seed, keep=False):
    return group_split([name for name, _ in rows], [sorted(of) for _, of in rows], shares, seed=seed, keep=keep)


@settings(deadline=None)
@given(samples, fractions, seeds)
def test_everything_is_covered_once_groups_whole_and_no_wanted_part_empty(rows, shares, seed):
    assume(len({name for name, _ in rows}) > sum(share > 0 for share in shares))
    parts = split(rows, shares, seed)
    assert sorted(index for part in parts for index in part) == list(range(len(rows)))
    assert [bool(part) for part in parts] == [*(share > 0 for share in shares), True]
    names = [{rows[index][0] for index in part} for part in parts]
    assert sum(map(len, names)) == len(set().union(*names))
    assert split(rows, shares, seed) == parts


@settings(deadline=None)
@given(samples, fractions, seeds, st.randoms())
def test_the_split_does_not_depend_on_the_order_of_the_samples(rows, shares, seed, shuffler: random.Random):
    assume(len({name for name, _ in rows}) > sum(share > 0 for share in shares))
    shuffled = list(rows)
    shuffler.shuffle(shuffled)
    one, other = ([{of[index][0] for index in part} for part in split(of, shares, seed)] for of in (rows, shuffled))
    assert one == other


@settings(deadline=None)
@given(samples, fractions, seeds)
def test_the_rest_keeps_a_sample_of_each_kind_if_asked(rows, shares, seed):
    try:
        *_, rest = split(rows, shares, seed, keep=True)
    except ValueError:
        return
    assert set().union(*(rows[index][1] for index in rest)) == set().union(*(of for _, of in rows))


def test_kinds_are_cut_in_proportion_and_another_seed_cuts_otherwise():
    """500 samples of their own group; each of five kinds is on a share of them from 4 to 60 %."""
    draw = random.Random(0)
    shares = (0.6, 0.4, 0.2, 0.1, 0.04)
    rows = [(str(n), {kind for kind, share in enumerate(shares) if draw.random() < share}) for n in range(500)]
    total = Counter(kind for _, of in rows for kind in of)
    val, train = split(rows, [0.2], 0)
    assert abs(len(val) - 100) <= 3
    counts = Counter(kind for index in val for kind in rows[index][1])
    assert all(abs(counts[kind] - 0.2 * total[kind]) <= 3 for kind in total)
    assert val != split(rows, [0.2], 1)[0]
    assert len(train) + len(val) == 500


def test_large_groups_come_near_to_the_share():
    """20 groups of 5 to 24 samples."""
    rows = [(f"g{group}", {group % 2}) for group in range(20) for _ in range(5 + group)]
    for seed in range(20):
        test, val, _ = split(rows, [0.15, 0.2], seed)
        assert abs(len(test) / len(rows) - 0.15) < 0.05
        assert abs(len(val) / len(rows) - 0.2) < 0.05


def test_tags_that_only_one_sample_has_do_not_keep_a_part_from_its_size():
    rows = [(str(n), {n}) for n in range(100)]
    assert len(split(rows, [0.2], 0)[0]) == 20


def test_too_few_groups_are_refused():
    with pytest.raises(ValueError, match=r"there are 2 group\(s\), too few for 3 parts"):
        split([("a", {0}), ("b", {0})], [0.2, 0.2], 0)
    with pytest.raises(ValueError, match="each group has all samples of some class"):
        split([("a", {0}), ("b", {1})], [0.2], 0, keep=True)
