"""The short form of tests/benchmarks/kill_and_resume.py."""

import runpy
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "kill_and_resume.py"


def test_trainings_killed_at_random_instants_end_like_the_uninterrupted_one() -> None:
    """Float32, CPU, one thread. SIGKILL, then on from the newest whole checkpoint."""
    counts = runpy.run_path(str(SCRIPT))["main"](5)
    assert counts["kills"] == counts["equal"] == 5
    assert counts["torn"] == 0
