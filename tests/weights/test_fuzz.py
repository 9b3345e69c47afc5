"""Damaged files of every format, and that the fuzz would notice what it looks for."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import fuzzing
import pytest
import torch
from fuzz_files import base_files
from torch import nn

from lit_transfer.weights import WeightsError


def test_five_hundred_damaged_files() -> None:
    """In a process of its own: its audit hook and its limits stay for good. `--cases 20000` runs on request."""
    command = [sys.executable, fuzzing.__file__, "--cases", "500", "--seed", "0"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_files_are_small_and_each_of_its_format(tmp_path: Path) -> None:
    bases = base_files(tmp_path)
    assert max(len(data) for files in bases.values() for data in files.values()) <= 10_240
    assert len({tuple(files.values()) for files in bases.values()}) == len(bases)


def raises(model: nn.Module, path: Path) -> None:
    raise KeyError("weight")


def half_loads(model: nn.Module, path: Path) -> None:
    with torch.no_grad():
        next(model.parameters()).zero_()
    raise WeightsError("half a file")


def writes(model: nn.Module, path: Path) -> None:
    path.with_name("elsewhere").write_text("")


def leaves(model: nn.Module, path: Path) -> None:
    (path.parent / "room" / "left").write_text("")


def executes(model: nn.Module, path: Path) -> None:
    exec("pass")


def exhausts(model: nn.Module, path: Path) -> None:
    raise WeightsError("too large") from MemoryError()


@pytest.mark.parametrize(
    ("load", "told"),
    [
        (raises, "KeyError: 'weight'"),
        (half_loads, "half loaded"),
        (writes, "open .*elsewhere"),
        (leaves, "left .*left"),
        (executes, "exec "),
        (exhausts, "out of memory"),
    ],
)
def test_what_the_fuzz_would_notice(
    load: Any, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watch: fuzzing.Watch
) -> None:
    monkeypatch.setattr(fuzzing, "load_weights", load)
    monkeypatch.setattr(fuzzing, "open_checkpoint", lambda path: None)
    monkeypatch.setattr(fuzzing, "describe", lambda checkpoint: None)
    (tmp_path / "room").mkdir()
    monkeypatch.setattr(watch, "_room", str(tmp_path / "room"))
    wrong = fuzzing.judge(tmp_path / "f", watch, tmp_path / "room", fuzzing.Tally())
    assert re.search(told, wrong)


@pytest.fixture(scope="module")
def watch() -> fuzzing.Watch:
    """One for all tests, as audit hooks stay; it is off but while a file is judged."""
    return fuzzing.Watch(Path("nowhere"))
