"""`lr-find` looks for the head's rate with the other groups in proportion, and says how to fit with it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lit_transfer.cli.lr_find import _keep_proportions, suggest_rate

SMALL = ("--model.weights=null", "--data.image_size=32", "--data.batch_size=8", "--trainer.accelerator=cpu")


def test_a_rate_a_picture_and_the_command_that_uses_it(run: Any, photos: Path) -> None:
    words = (f"--data.root={photos}", "--model.backbone", "squeezenet1_1", *SMALL, "--data.num_workers=0")
    code, out, err = run("lr-find", *words, "--num_training=40", "--plot", "lr.png", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert 1e-6 < told["suggestion"] < 1
    assert told["lr"][0] == pytest.approx(1e-6)
    assert Path("lr.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in Path().iterdir()} == {"lr.png"}
    command = told["command"].split()
    assert command[:2] == ["lit-transfer", "fit"]
    assert command[2 : 2 + len(words)] == list(words)
    rate = f"--model.optimizer.lr={told['suggestion']:.2g}"
    assert command[-4:] == ["--model.optimizer", "AdamW", "--model.optimizer.weight_decay=0.05", rate]
    code, _, err = run(*command[1:], "--trainer.fast_dev_run=true")
    assert code == 0, err
    for flags, told_of in (
        (["--min_lr=1", "--max_lr=0.1"], "--min_lr 1 must be below"),
        (["--num_training=5"], "at least 20"),
        (["--num_training=20", "--max_lr=1e-5"], "the loss never falls"),
        (["--plot=nowhere/a.png"], "no folder 'nowhere'"),
        (["--plot=a.docx"], "type 'docx'"),
        (["--max_rl=1"], "Nearest"),
    ):
        code, out, err = run("lr-find", *words, *flags)
        assert (code, out) == (2, "")
        assert told_of in err.splitlines()[-1]


def test_the_groups_move_in_proportion_whatever_one_rate_the_finder_sets() -> None:
    net = nn.ModuleDict({"body": nn.Linear(1, 1, bias=False), "head": nn.Linear(1, 1, bias=False)})
    groups = [
        {"params": list(net[name].parameters()), "stage": stage, "lr": lr}
        for name, stage, lr in (("body", "stem", 0.03), ("head", "head", 1.0))
    ]
    optimizer = torch.optim.SGD(groups)
    _keep_proportions(optimizer)
    before = [parameter.item() for parameter in net.parameters()]
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = [start - parameter.item() for start, parameter in zip(before, net.parameters(), strict=True)]
    assert moved == pytest.approx([0.015, 0.5], rel=1e-4)
    with pytest.raises(ValueError, match="that is 0"):
        _keep_proportions(torch.optim.SGD([{**groups[1], "lr": 0.0, "params": [nn.Parameter(torch.ones(1))]}]))


def test_the_steepest_place_and_curves_that_tell_nothing() -> None:
    rates = [10 ** (-6 + 6 * step / 99) for step in range(100)]
    falling = [2 - 1.5 / (1 + math.exp(-4 * (math.log10(rate) + 3))) + (rate > 0.1) * 30 * rate for rate in rates]
    assert suggest_rate(rates, falling) == pytest.approx(1e-3, rel=0.2)
    with pytest.raises(ValueError, match="the loss never falls"):
        suggest_rate(rates, [1 + rate for rate in rates])
    with pytest.raises(ValueError, match="only 9 losses"):
        suggest_rate(rates[:12], [*falling[:9], *[float("nan")] * 3])
