"""Which moments belong to which parameter: right or refused, never wrong."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_transfer.restore._assign import assign
from lit_transfer.weights import WeightsError

SHAPES = st.sampled_from([(3, 2), (3,), (2, 3), (4, 4), (1,)])


def keys_of(groups: list[list[str]]) -> tuple[list[list[tuple[int, int]]], dict[tuple[int, int], str]]:
    """Positions instead of names, as torch saves them; and the names, which it does not save."""
    flat = [name for group in groups for name in group]
    truth = {(0, position): name for position, name in enumerate(flat)}
    positions = iter(truth)
    return [[next(positions) for _ in group] for group in groups], truth


@settings(deadline=None, max_examples=120)
@given(shapes=st.lists(SHAPES, min_size=1, max_size=9), data=st.data())
def test_groups_in_the_models_order_are_named_rightly_or_refused(shapes: list[tuple[int, ...]], data: Any) -> None:
    """Any split into groups, any parameters left out of the optimizer or without moments."""
    names = {f"p{i}": shape for i, shape in enumerate(shapes)}
    count = data.draw(st.integers(1, 3))
    places = data.draw(st.lists(st.integers(-1, count - 1), min_size=len(names), max_size=len(names)))
    groups = [[name for name, at in zip(names, places, strict=True) if at == number] for number in range(count)]
    keys, truth = keys_of(groups)
    frozen = data.draw(st.sets(st.sampled_from(sorted(truth)))) if truth else set()
    moments = {key: names[name] for key, name in truth.items() if key not in frozen}
    try:
        found = assign(keys, moments, names)
    except WeightsError as error:
        assert "fit in several ways" in str(error)  # noqa: PT017  (either answer is right)
        return
    assert found == {key: truth[key] for key in moments}


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_shapes_that_occur_once_need_no_order(data: Any) -> None:
    names = {f"p{i}": (i + 1, 2) for i in range(6)}
    order = data.draw(st.permutations(list(names)))
    cut = data.draw(st.integers(0, 6))
    keys, truth = keys_of([order[:cut], order[cut:]])
    assert assign(keys, {key: names[name] for key, name in truth.items()}, names) == truth


@settings(deadline=None, max_examples=100)
@given(shapes=st.lists(SHAPES, min_size=1, max_size=8), data=st.data())
def test_one_group_of_all_parameters_is_never_ambiguous(shapes: list[tuple[int, ...]], data: Any) -> None:
    """Frozen ones, which have no moments, among them."""
    names = {f"p{i}": shape for i, shape in enumerate(shapes)}
    keys, truth = keys_of([list(names)])
    trained = {key: name for key, name in truth.items() if data.draw(st.booleans())}
    assert assign(keys, {key: names[name] for key, name in trained.items()}, names) == trained


@settings(deadline=None, max_examples=100)
@given(shapes=st.lists(SHAPES, min_size=1, max_size=8), data=st.data())
def test_a_moment_never_gets_a_parameter_of_another_shape(shapes: list[tuple[int, ...]], data: Any) -> None:
    """Whatever the file says, of whichever model."""
    names = {f"p{i}": shape for i, shape in enumerate(shapes)}
    theirs = data.draw(st.lists(st.lists(SHAPES, max_size=5), min_size=1, max_size=3))
    keys, _ = keys_of([[""] * len(group) for group in theirs])
    moments = dict(zip([k for group in keys for k in group], [s for group in theirs for s in group], strict=True))
    try:
        found = assign(keys, moments, names)
    except WeightsError:
        return
    assert len(set(found.values())) == len(found) == len(moments)
    assert all(names[name] == moments[key] for key, name in found.items())


def test_equal_blocks_in_two_groups_are_refused_with_what_mends_it() -> None:
    names = {f"{block}.{leaf}": shape for block in "ab" for leaf, shape in (("weight", (4, 4)), ("bias", (4,)))}
    keys, truth = keys_of([["a.weight", "a.bias"], ["b.weight", "b.bias"]])
    with pytest.raises(WeightsError, match=r"several ways.*parameter_names=\[.*optimizer='fresh'"):
        assign(keys, {key: names[name] for key, name in truth.items()}, names)


def test_decay_and_no_decay_groups_of_a_deep_network_are_told_apart() -> None:
    names = {f"{i}.{leaf}": shape for i in range(200) for leaf, shape in (("weight", (8, 8)), ("bias", (8,)))}
    keys, truth = keys_of([[n for n in names if n.endswith("weight")], [n for n in names if n.endswith("bias")]])
    assert assign(keys, {key: names[name] for key, name in truth.items()}, names) == truth


def test_many_groups_of_equal_blocks_are_refused_in_time() -> None:
    names = {f"{i}.{leaf}": shape for i in range(25) for leaf, shape in (("weight", (8, 8)), ("bias", (8,)))}
    keys, truth = keys_of([[f"{i}.weight", f"{i}.bias"] for i in range(25)])
    with pytest.raises(WeightsError, match="several ways"):
        assign(keys, {key: names[name] for key, name in truth.items()}, names)


def test_a_contradiction_names_both_shapes() -> None:
    with pytest.raises(WeightsError, match=r"parameter 1 have the shape \[3\], and fc.bias has \[2\]"):
        assign([[(0, 0), (0, 1)]], {(0, 0): (2, 4), (0, 1): (3,)}, {"fc.weight": (2, 4), "fc.bias": (2,)})
    with pytest.raises(WeightsError, match=r"it has 2 parameters, and the weights 1"):
        assign([[(0, 0), (0, 1)]], {(0, 0): (2, 4), (0, 1): (2, 4)}, {"fc.weight": (2, 4)})
