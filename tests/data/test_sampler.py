from collections import Counter
from itertools import chain, islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from lit_transfer.data._sampler import EpochSampler, by_class, epoch_order

sizes, batch_sizes, worlds, seeds = st.integers(1, 60), st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**31)


def ranks(size, batch_size, world_size, seed=0, epoch=0):
    made = [EpochSampler(size, batch_size, seed=seed, rank=r, world_size=world_size) for r in range(world_size)]
    for sampler in made:
        sampler.set_epoch(epoch)
    return made


@settings(deadline=None)
@given(sizes, batch_sizes, worlds, seeds)
def test_the_processes_share_out_all_samples_evenly(size, batch_size, world_size, seed):
    shares = [list(sampler) for sampler in ranks(size, batch_size, world_size, seed)]
    lengths = {len(share) for share in shares}
    assert lengths == {len(ranks(size, batch_size, world_size)[0])}
    seen = Counter(index for share in shares for index, _ in share)
    left_out = size - len(seen)
    assert left_out <= world_size
    assert left_out == 0 or -(-size // world_size) % batch_size == 1
    assert max(seen.values()) <= max(1, -(-world_size // size) + 1)


@settings(deadline=None)
@given(sizes, st.integers(2, 9), worlds, seeds)
def test_no_batch_holds_a_single_sample_unless_there_is_one_only(size, batch_size, world_size, seed):
    for sampler in ranks(size, batch_size, world_size, seed):
        batches = list(DataLoader(range(size), batch_size, sampler=sampler, collate_fn=list).batch_sampler)
        assert len(batches) == -(-len(sampler) // batch_size)
        assert len(batches[-1]) > 1 or len(sampler) == 1


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        sampler = ranks(40, 8, 1, seed, epoch)[0]
        assert list(sampler) == list(sampler)
        assert {e for _, e in sampler} == {epoch}
        return [index for index, _ in sampler]

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(0, 4)
    assert order(0, 3) != order(1, 3)
    assert order(0, 1) != order(1, 0)


@settings(deadline=None)
@given(sizes, batch_sizes, worlds, seeds, st.data())
def test_an_epoch_entered_in_its_middle_yields_what_was_to_come(size, batch_size, world_size, seed, data):
    whole = [list(sampler) for sampler in ranks(size, batch_size, world_size, seed, epoch=3)]
    done = data.draw(st.integers(0, -(-len(whole[0]) // batch_size)))
    for sampler, expected in zip(ranks(size, batch_size, world_size, seed, epoch=3), whole, strict=True):
        sampler.resume(3, done * batch_size * world_size)
        assert sampler.left == len(expected[done * batch_size :])
        assert list(sampler) == expected[done * batch_size :]
        assert list(sampler) == expected  # the next epoch, or the same one again, begins at its beginning


@settings(deadline=None)
@given(sizes, batch_sizes, worlds, worlds, st.data())
def test_with_another_number_of_processes_the_rest_is_shared_out_among_them(size, batch_size, before, after, data):
    seen = [sample for sampler in ranks(size, batch_size, before) for sample in islice(sampler, 2 * batch_size)]
    rest = []
    for sampler in ranks(size, batch_size, after):
        sampler.resume(0, 2 * batch_size * before)
        rest.append(list(sampler))
    assert len({len(share) for share in rest}) == 1
    left_out = set(range(size)) - {index for index, _ in chain(seen, *rest)}
    assert len(left_out) <= max(before, after)  # a last batch of a single sample
    if 2 * batch_size * before < size:
        assert not {sample for share in rest for sample in share[:-1]} & set(seen)


def test_a_place_in_another_epoch_is_not_taken():
    sampler = EpochSampler(8, 2)
    sampler.resume(1, 4)
    assert len(list(sampler)) == 8


# --- equally many of each class --------------------------------------------------------------------------------------

classes = st.lists(st.integers(0, 4), min_size=1, max_size=60)


@settings(deadline=None)
@given(classes, seeds, st.integers(0, 5))
def test_an_epoch_visits_equally_many_of_each_class_and_all_of_one_before_any_again(classes, seed, epoch):
    order = epoch_order(len(classes), seed=seed, epoch=epoch, members=by_class(classes))
    assert len(order) == len(classes)
    visits = Counter(classes[sample] for sample in order)
    assert set(visits) == set(classes)
    assert max(visits.values()) - min(visits.values()) <= 1
    times = Counter(order)
    for one in set(classes):
        own = [times[sample] for sample, other in enumerate(classes) if other == one]
        assert max(own) - min(own) <= 1


@settings(deadline=None)
@given(classes, batch_sizes, worlds, seeds, st.data())
def test_a_balanced_epoch_is_shared_out_and_entered_in_its_middle(classes, batch_size, world_size, seed, data):
    size = len(classes)

    def made():
        options = {"seed": seed, "balance": classes, "world_size": world_size}
        samplers = [EpochSampler(size, batch_size, rank=r, **options) for r in range(world_size)]
        for sampler in samplers:
            sampler.set_epoch(3)
        return samplers

    whole = [list(sampler) for sampler in made()]
    assert {len(share) for share in whole} == {len(made()[0])}
    order = epoch_order(size, seed=seed, epoch=3, members=by_class(classes))
    shared = [index for samples in zip(*whole, strict=True) for index, _ in samples]
    assert shared[:size] == order[: len(shared)]
    done = data.draw(st.integers(0, -(-len(whole[0]) // batch_size)))
    for sampler, expected in zip(made(), whole, strict=True):
        sampler.resume(3, done * batch_size * world_size)
        assert list(sampler) == expected[done * batch_size :]


def test_balanced_epochs_differ_and_leave_no_sample_out_for_good():
    members = by_class([0] * 5 + [1] * 35)
    orders = [epoch_order(40, seed=0, epoch=epoch, members=members) for epoch in range(12)]
    assert orders[0] == epoch_order(40, seed=0, epoch=0, members=members)
    assert len({tuple(order) for order in orders}) == 12
    assert set(chain(*orders)) == set(range(40))
    assert orders[0] != epoch_order(40, seed=1, epoch=0, members=members)
    firsts = [sample < 5 for order in orders for sample in order[:20]]
    assert 80 < sum(firsts) < 160  # the classes are mixed within an epoch


def test_a_sample_that_comes_again_in_an_epoch_is_augmented_anew():
    keys = list(EpochSampler(12, 4, balance=[0] * 2 + [1] * 10))
    assert len({index for index, _ in keys}) == 8  # both of one class, three times each, and six of the other
    assert len(set(keys)) == len(keys) == 12
    firsts = [epoch for index, epoch in keys if index == 0]
    assert {epoch % 2 for epoch in firsts} == {0, 1}  # of two stored views it gets both


def test_classes_may_be_of_any_kind():
    for labels in ([0, 1, 0], ["a", "b", "a"], torch.tensor([7, 8, 7]), list(torch.tensor([7, 8, 7]))):
        assert by_class(labels) == [[0, 2], [1]]


@pytest.mark.parametrize("options", [{"balance": [0, 1]}, {"balance": [0, 1, 1], "shuffle": False}])
def test_what_cannot_be_balanced_is_refused(options):
    with pytest.raises(ValueError, match=r"balance needs the class of each sample, and a random order; got"):
        EpochSampler(3, 2, **options)
