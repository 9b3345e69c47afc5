"""Another number of processes, and sharded by FSDP2: where one process ends. Float32, one thread each, CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from resumable import Foreign, by_hand, loader, train, trainer
from torch import nn

from lit_transfer.callbacks import TolerantRestore

SCRIPT = Path(__file__).with_name("ddp_restore.py")
pytestmark = pytest.mark.xdist_group("ddp")
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("restore")


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, State]:
    """Where the loop by hand ends, and where one process of Lightning's does."""
    ends = {}
    for kind in ("sgd", "adamw"):
        network, optimizer, scheduler = by_hand(folder / f"{kind}.pth", kind, norm=nn.LayerNorm)
        train(network, optimizer, scheduler, 3)
        ends[kind] = network.state_dict()
    torch.manual_seed(3)
    module, run = Foreign("adamw", norm=nn.LayerNorm), trainer(3, TolerantRestore())
    run.fit(module, loader(), loader())
    run.save_checkpoint(folder / "one.ckpt")
    ends["one"] = resume(folder / "one.ckpt", 6)
    ends["longer"] = resume(folder / "one.ckpt", 8)
    return ends


def resume(path: Path, epochs: int) -> State:
    module = Foreign("adamw", norm=nn.LayerNorm)
    trainer(epochs, TolerantRestore()).fit(module, loader(), loader(), ckpt_path=path)
    return module.net.state_dict()


@pytest.fixture(scope="module")
def answers(folder: Path, expected: dict[str, State]) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    assert lines, done.stderr[-5000:]
    found: dict[str, Any] = json.loads(lines[-1].removeprefix("ANSWER "))
    return found


def apart(one: State, other: State) -> float:
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.mark.parametrize(
    ("case", "end"),
    [
        ("sgd", "sgd"),
        ("adamw", "adamw"),
        ("one to two", "one"),
        ("fsdp2", "sgd"),
        ("to fsdp2", "one"),
    ],
)
def test_two_processes_go_on_where_one_would(
    case: str, end: str, answers: dict[str, Any], expected: dict[str, State]
) -> None:
    state = {name: torch.tensor(value) for name, value in answers[case]["state"].items()}
    assert answers[case]["seen"] == [3, 12]
    assert apart(state, expected[end]) < 2e-5
    assert answers[case]["told"] == []


@pytest.mark.parametrize("file", ["two.ckpt", "full.ckpt", "folder.ckpt"])
def test_one_process_goes_on_where_two_stopped(
    file: str, folder: Path, answers: dict[str, Any], expected: dict[str, State]
) -> None:
    """`two.ckpt` is DDP's, `full.ckpt` is FSDP2's, and so is the folder of shards `folder.ckpt`."""
    assert apart(resume(folder / file, 8), expected["longer"]) < 2e-5


def test_a_new_head_is_told_where_the_module_is_sharded(answers: dict[str, Any]) -> None:
    (told,) = answers["new head"]["told"]
    assert "fresh weights for net.3.weight, net.3.bias" in told
    assert answers["new head"]["seen"] == [3, 12]
