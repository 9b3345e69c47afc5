"""Two gloo processes with different data stay together bit for bit, whatever changes in what trains. Float64, CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("ddp_fit.py")
pytestmark = pytest.mark.xdist_group("ddp")


Answers = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    folder = tmp_path_factory.mktemp("ddp")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    assert lines, done.stderr[-3000:]
    found: Answers = json.loads(lines[-1].removeprefix("ANSWER "))
    return found


def furthest(one: dict[str, Any], other: dict[str, Any]) -> float:
    return max(abs(a - b) for a, b in zip(one["values"], other["values"], strict=True))


@pytest.mark.parametrize(
    "case", ["plain", "static_graph", "find_unused", "bucket_view", "accumulate", "powersgd", "compile"]
)
def test_ranks_agree_after_each_phase_with(case: str, answers: Answers) -> None:
    assert answers[case]["apart"] == [0.0] * 4


@pytest.mark.parametrize(
    "case",
    ["plain", "static_graph", "find_unused", "bucket_view", "compile", "sharded", "flattened", "flattened by unit"],
)
def test_two_processes_end_where_one_does_with_the_same_global_batch(case: str, answers: Answers) -> None:
    assert furthest(answers[case], answers["single"]) <= 1e-10


def test_sync_batchnorm_that_is_frozen_stays_as_it_is_and_features_are_those_of_one_process(answers: Answers) -> None:
    assert answers["sync_batchnorm"]["kinds"] == ["SyncBatchNorm"] * 3
    assert answers["sync_batchnorm"]["apart"] == [0.0] * 4
    assert furthest(answers["sync_batchnorm"], answers["single with norms"]) <= 1e-10


def test_norm_layers_that_lightning_replaces_when_the_fit_is_over_stay_frozen(answers: Answers) -> None:
    assert answers["sync_batchnorm"]["held"] == [True] * 3


def test_parameters_that_fsdp_flattened_unseen_are_refused_with_what_to_add(answers: Answers) -> None:
    assert "Add FinetuningSchedule or TrainabilityAudit" in answers["unseen"]["told"]


@pytest.mark.parametrize("step", [6, 11])
def test_ranks_agree_after_a_resume_past_a_change_and_end_where_the_whole_run_does(step: int, answers: Answers) -> None:
    assert set(answers[f"resumed {step}"]["apart"]) == {0.0}
    assert furthest(answers[f"resumed {step}"], answers["plain"]) == 0


def test_the_audit_refuses_what_the_reducer_does_not_cover_and_sees_ranks_that_drifted(answers: Answers) -> None:
    assert "DDP's reducer was built without" in answers["uncovered"]["told"]
    assert "drifted apart by step 16 in encoder" in answers["drift"]["told"]
