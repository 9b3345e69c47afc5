"""A schedule over a whole run is known before any training, and is what training then does."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR, StepLR

from lit_transfer import frozen_names, param_groups
from lit_transfer.schedule import phase_table, plot_timeline, timeline


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 4, 3, 2), nn.Conv2d(4, 8, 3, 2))
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


def test_gradual_trains_one_stage_more_at_a_time_at_the_rates_of_scheduler_and_phase() -> None:
    net = Net()
    optimizer = SGD(param_groups(net, 0.1))
    moments = timeline(
        net,
        {"preset": "gradual", "every": {"epoch": 1}, "layer_decay": 0.5},
        epochs=5,
        steps_per_epoch=2,
        optimizers=[optimizer],
        every_epoch=[StepLR(optimizer, 1, 0.5)],
    )
    assert [sum(share == 1 for share in m.trains.values()) for m in moments] == [1, 1, 2, 2, 3, 3, 4, 4, 4, 4]
    assert [m.lr["head"] for m in moments][::2] == pytest.approx([0.1, 0.05, 0.025, 0.0125, 0.00625])
    assert moments[-1].lr["stem"] == pytest.approx(moments[-1].lr["head"] / 4)
    assert moments[0].lr["stem"] == 0
    assert frozen_names(net) == ()
    assert phase_table(moments).splitlines()[3].split("  ")[0] == "3"


def test_a_part_of_a_stage_is_told_as_a_part() -> None:
    moments = timeline(Net(), [{"train": "body.0.bias"}], epochs=1, steps_per_epoch=3)
    assert moments[0].trains["stem"] == pytest.approx(4 / 112)
    assert phase_table(moments).splitlines()[1].split() == ["1", "0-2", "stem", "(part)"]


def test_the_picture_shows_every_stage(tmp_path: Path) -> None:
    net = Net()
    optimizer = SGD(param_groups(net, 0.1))
    cycle = OneCycleLR(optimizer, 0.1, total_steps=30)
    figure = plot_timeline(
        timeline(net, "gradual", epochs=3, steps_per_epoch=10, optimizers=[optimizer], every_step=[cycle])
    )
    rates, states = figure.axes
    assert [label.get_text() for label in states.get_yticklabels()] == ["stem", "stage1", "stage2", "head"]
    assert len(rates.lines) == 4
    figure.savefig(tmp_path / "schedule.png")
