from collections import Counter
from itertools import chain, islice

from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from lit_transfer.data._sampler import EpochSampler

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
