"""A schedule over a whole run is known before any training, and is what training then does."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR, StepLR

from lit_transfer import frozen_names, param_groups
from lit_transfer.schedule import phase_table, plot_timeline, stretches, timeline


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
    lines = [line.split() for line in phase_table(moments).splitlines()]
    assert lines[3][:6] == ["3", "2", "4-5", "stage1", "to", "head"]
    assert lines[3][6:] == ["462", "stage1", "0.0125,", "stage2", "to", "head", "0.025"]
    assert lines[4][:4] == ["4", "3-4", "6-9", "all"]
    third = stretches(moments)[2]
    assert (third.epochs, third.steps, third.trainable) == ((2, 2), (4, 5), 462)
    assert third.lr["stage1"] == pytest.approx((0.0125, 0.0125, 0.0125))


def test_a_part_of_a_stage_is_told_as_a_part() -> None:
    moments = timeline(Net(), [{"train": "body.0.bias"}], epochs=1, steps_per_epoch=3)
    assert moments[0].trains["stem"] == pytest.approx(4 / 112)
    assert phase_table(moments).splitlines()[1].split() == ["1", "0", "0-2", "stem", "(part)", "4"]


def test_the_run_ends_at_its_last_step_and_fractions_are_of_that_length() -> None:
    moments = timeline(Net(), "probe_then_finetune", epochs=10, steps_per_epoch=4, max_steps=10)
    assert [moment.phase for moment in moments] == [0] * 3 + [1] * 7
    assert [moment.epoch for moment in moments][-1] == 2


def test_rates_of_groups_that_param_groups_did_not_make_are_told_by_stage() -> None:
    net = Net()
    optimizers = [SGD([{"params": net.body.parameters(), "lr": 0.01}], 1.0), SGD(net.head.parameters(), 0.1)]
    moments = timeline(net, [{"train": ["head", "stage2"]}], epochs=1, steps_per_epoch=1, optimizers=optimizers)
    assert moments[0].lr == {"stem": 0.0, "stage1": 0.0, "stage2": 0.01, "head": 0.1}


def test_norm_affines_that_are_left_trainable_are_counted() -> None:
    net = Net()
    net.body.insert(1, nn.BatchNorm2d(4))
    (moment,) = timeline(net, "linear_probe", epochs=1, steps_per_epoch=1, train_norms=True)
    assert moment.trainable == 8 + 18
    assert moment.trains["stem"] == pytest.approx(8 / 120)


def test_the_picture_shows_every_stage(tmp_path: Path) -> None:
    net = Net()
    optimizer = SGD(param_groups(net, 0.1))
    cycle = OneCycleLR(optimizer, 0.1, total_steps=30)
    figure = plot_timeline(
        timeline(net, "gradual", epochs=3, steps_per_epoch=10, optimizers=[optimizer], every_step=[cycle])
    )
    rates, states = figure.axes
    assert [label.get_text() for label in states.get_yticklabels()] == ["stem", "stage1", "stage2", "head"]
    curves = {line.get_label(): line for line in rates.lines if not line.get_label().startswith("_")}
    assert list(curves) == ["stem", "stage1", "stage2", "head"]
    changes = sorted({line.get_xdata()[0] for line in rates.lines if line.get_label().startswith("_")})
    assert changes == [8, 15, 23]
    steps, values = curves["stage2"].get_data()
    assert all((value > 0) == (step >= 8) for step, value in zip(steps, values, strict=True))
    figure.savefig(tmp_path / "schedule.png")
