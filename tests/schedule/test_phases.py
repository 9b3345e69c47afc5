"""Schedules are checked by name, and what trains is a pure, monotone function of the progress."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_transfer.schedule import (
    Progress,
    check_schedule,
    first_step,
    phase_at,
    plan_schedule,
    trainable_at,
    unreachable,
)
from lit_transfer.schedule._triggers import fired_steps, observe

STAGES = ["stem", "stage1", "stage2", "head"]


@pytest.mark.parametrize(
    ("phases", "told"),
    [
        ([{"tarin": "head"}], "no key 'tarin'. Did you mean 'train'"),
        ([{"train": "head"}, {"at": {"epok": 3}, "train": "all"}], "at has no key 'epok'. Did you mean 'epoch'"),
        ([{"train": "head"}, {"when": {"platau": "val_loss"}, "train": "all"}], "Did you mean 'plateau'"),
        ([{"train": "head"}, {"when": {"metric": "val_acc"}, "train": "all"}], "above"),
        ([{"train": "head"}, {"when": {"plateau": "val_loss", "above": 1}, "train": "all"}], "not above"),
        ([{"train": "head"}, {"train": "all"}], "Phase 2 needs `at` or `when`"),
        ([{"at": {"epoch": 2}, "train": "head"}], "Phase 1 starts with the run"),
        ([{"train": "head"}, {"at": {"epoch": 1, "step": 2}, "train": "all"}], "one of epoch, step and fraction"),
        ([{"train": "head"}, {"at": {"epoch": 1.5}, "train": "all"}], "must be a whole number"),
        ([{"train": "head"}, {"at": {"fraction": 2}, "train": "all"}], "from 0 to 1"),
        ([{"train": []}], "trains nothing"),
        ([{"train": "all", "top": 1}], "one of them"),
        ([{"train": "all", "layer_decay": 0}], "layer_decay must be above 0"),
        ([{"train": "all", "warmup": -1}], "warmup must be a whole number of at least 0"),
        ([], "a list of phases or a preset"),
        ("gradul", "Did you mean 'gradual'"),
        ({"preset": "freeze_first_k"}, "needs k"),
        ({"preset": "linear_probe", "k": 1}, "no key 'k'"),
        ({"preset": "gradual", "every": {"epoch": 1, "step": 2}}, "every needs one of"),
    ],
)
def test_what_is_wrong_is_named_before_any_module_is_seen(phases: Any, told: str) -> None:
    with pytest.raises((ValueError, TypeError)) as raised:
        check_schedule(phases)
    assert told in str(raised.value)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("linear_probe", {0: ["head"]}),
        ("full", {0: ["all"]}),
        ("from_scratch", {0: ["all"]}),
        ({"preset": "freeze_first_k", "k": 2}, {0: ["stage2", "head"]}),
        ("probe_then_finetune", {0: ["head"], 30: ["all"]}),
        ({"preset": "probe_then_finetune", "at": {"step": 7}}, {0: ["head"], 7: ["all"]}),
        ("gradual", {0: ["head"], 25: ["stage2", "head"], 50: ["stage1", "stage2", "head"], 75: STAGES}),
        ({"preset": "gradual", "every": {"step": 10}}, {0: ["head"], 10: ["stage2", "head"], 30: STAGES}),
    ],
)
def test_presets_train_what_their_names_say(preset: Any, expected: dict[int, list[str]]) -> None:
    phases = plan_schedule(preset, STAGES)
    for step, words in expected.items():
        assert list(trainable_at(phases, Progress(0, step, 100))) == words
        if step:
            assert list(trainable_at(phases, Progress(0, step - 1, 100))) != words


@pytest.mark.parametrize("k", [-1, 4, True, 1.0])
def test_a_preset_tells_the_range_of_its_argument(k: Any) -> None:
    with pytest.raises(ValueError, match="k must be from 0 to 3"):
        plan_schedule({"preset": "freeze_first_k", "k": k}, STAGES)


def test_top_is_the_head_and_the_last_stages() -> None:
    assert plan_schedule([{"top": 1}], STAGES)[0].train == ("stage2", "head")
    with pytest.raises(ValueError, match="top must be at most 3"):
        plan_schedule([{"top": 4}], STAGES)


ATS = st.one_of(
    st.integers(0, 20).map(lambda n: {"epoch": n}),
    st.integers(0, 200).map(lambda n: {"step": n}),
    st.floats(0, 1).map(lambda x: {"fraction": x}),
)
PLANS = st.lists(ATS, max_size=5).map(
    lambda ats: plan_schedule([{"train": "head"}, *({"at": at, "train": "all"} for at in ats)], STAGES)
)


@given(PLANS, st.integers(0, 19), st.integers(0, 9), st.integers(0, 200))
def test_progress_never_leads_back_to_an_earlier_phase(plan: Any, epoch: int, batch: int, later: int) -> None:
    step = epoch * 10 + batch
    now = phase_at(plan, Progress(epoch, step, 200))
    after = phase_at(plan, Progress((step + later) // 10, step + later, 200))
    assert now <= after
    assert now == phase_at(plan, Progress(epoch, step, 200))


@given(PLANS)
def test_exactly_the_phases_that_are_never_entered_are_told(plan: Any) -> None:
    entered = {phase_at(plan, Progress(step // 10, step, 200)) for step in range(200)}
    told = {int(line.split()[1]) - 1 for line in unreachable(plan, 20, 200)}
    # A fraction's first step is rounded up, so that two starts may fall on the same step without being equal.
    exact = all(phase.at is None or phase.at[0] != "fraction" for phase in plan)
    assert told <= set(range(len(plan))) - entered if not exact else told == set(range(len(plan))) - entered


def test_a_metric_starts_its_phase_from_the_step_at_which_it_fired_and_at_is_the_latest() -> None:
    plan = plan_schedule(
        [{"train": "head"}, {"when": {"plateau": "val_loss"}, "at": {"epoch": 8}, "train": "all"}], STAGES
    )
    assert phase_at(plan, Progress(3, 30, fired={1: 31})) == 0
    assert phase_at(plan, Progress(3, 31, fired={1: 31})) == 1
    assert phase_at(plan, Progress(8, 80)) == 1


def test_a_fraction_of_a_run_without_end_is_told() -> None:
    assert "has no end" in unreachable(plan_schedule("probe_then_finetune", STAGES), None, None)[0]


@given(st.lists(st.floats(allow_nan=True, allow_infinity=False, width=32), max_size=12), st.integers(1, 4))
def test_a_plateau_fires_after_as_many_values_without_a_better_one_as_its_patience(values: Any, patience: int) -> None:
    watched: Any = {"when": {"plateau": "val_loss", "patience": patience}, "best": None, "bad": 0}
    best, since = math.inf, 0
    for value in values:
        fires, watched = observe(watched, value)
        since = 0 if value < best else since + 1
        best = min(best, value) if value == value else best
        assert fires == (since >= patience)


def test_a_metric_rises_unless_its_name_says_that_it_is_a_loss() -> None:
    for when, better in (
        ({"plateau": "val_acc"}, 1.0),
        ({"plateau": "val_loss"}, -1.0),
        ({"plateau": "x", "mode": "min"}, -1.0),
    ):
        assert not observe({"when": when, "best": 0.0, "bad": 0}, better)[0]
        assert observe({"when": when, "best": 0.0, "bad": 0}, -better)[0]


def test_an_edited_schedule_keeps_the_triggers_that_it_still_has() -> None:
    one, two = {"metric": "val_acc", "above": 0.5}, {"plateau": "val_loss"}
    fired: Any = [{"when": one, "step": 3}, {"when": two, "step": 7}]
    plan = plan_schedule([{"train": "head"}, {"when": two, "train": "all"}], STAGES)
    assert fired_steps(plan, fired) == {1: 7}


def test_the_first_step_of_a_phase_is_where_phase_at_enters_it() -> None:
    phases = [{"train": "head"}, {"at": {"epoch": 2}, "train": "stem"}, {"at": {"fraction": 0.55}, "train": "all"}]
    plan = plan_schedule(phases, STAGES)
    at = [phase_at(plan, Progress(step // 7, step, 70)) for step in range(70)]
    for index in range(3):
        assert first_step(plan, index, Progress(0, 0, 70, epoch_length=7)) == at.index(index)
    assert first_step(plan, 1, Progress(0, 0, 70)) is None
