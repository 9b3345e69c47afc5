"""What a checkpoint is, which of its parts are which, and which score is of which metric."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR

from lit_transfer.restore import contents_of, plain_root, plain_value, score_for
from lit_transfer.weights import open_checkpoint


def saved(tmp_path: Path, content: Any) -> Any:
    torch.save(content, tmp_path / "file.pth")
    return open_checkpoint(tmp_path / "file.pth")


def parts() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    network = nn.Linear(2, 2)
    optimizer = SGD(network.parameters(), lr=0.1)
    return dict(network.state_dict()), optimizer.state_dict(), StepLR(optimizer, 2).state_dict()


@pytest.mark.parametrize("name", ["optimizer", "optimizer_state_dic", "optim", "opt_state", "optimizers", "G"])
def test_an_optimizer_is_known_by_its_structure_whatever_its_name(tmp_path: Path, name: str) -> None:
    weights, optimizer, scheduler = parts()
    several = {"optimizers": [optimizer], "G": {"generator": optimizer}}.get(name, optimizer)
    found = contents_of(saved(tmp_path, {"net": weights, name: several, "sched": scheduler, "epoch": 3}))
    assert found.kind == "dictionary"
    assert len(found.optimizers) == len(found.schedulers) == 1
    assert found.unused == ()


@pytest.mark.parametrize(
    ("entries", "epoch", "is_next", "step"),
    [
        ({"epoch": 4}, 4, False, None),
        ({"epoch": torch.tensor(4), "global_step": 120}, 4, False, 120),
        ({"start_epoch": 5, "epoch": 4}, 5, True, None),
        ({"iteration": 7.0}, None, False, 7),
        ({"epoch": "four", "step": -1}, None, False, None),
        ({"epoch": True}, None, False, None),
    ],
)
def test_counters(tmp_path: Path, entries: dict[str, Any], epoch: int, is_next: bool, step: int) -> None:
    found = contents_of(saved(tmp_path, {"state_dict": parts()[0], **entries}))
    assert (found.epoch, found.epoch_is_next, found.step) == (epoch, is_next, step)


def test_scores_are_numbers_with_the_name_of_a_metric(tmp_path: Path) -> None:
    entries = {
        "best_acc1": 91.5,
        "loss": torch.tensor(0.25),
        "best_epoch": 3,
        "best_state": "x",
        "lr": 0.1,
        "acc": None,
    }
    found = contents_of(saved(tmp_path, {"state_dict": parts()[0], **entries}))
    assert found.scores == {"best_acc1": 91.5, "loss": 0.25}
    assert set(found.unused) == {"best_epoch", "best_state", "lr", "acc"}


def test_kinds(tmp_path: Path) -> None:
    weights, optimizer, _ = parts()
    assert contents_of(saved(tmp_path, weights)).kind == "weights"
    assert contents_of(saved(tmp_path, nn.Linear(2, 2))).kind == "module"
    assert contents_of(saved(tmp_path, {"model": nn.Linear(2, 2), "epoch": 1})).kind == "dictionary"
    lightning = {"pytorch-lightning_version": "2.0.0", "state_dict": weights, "optimizer_states": [optimizer]}
    assert contents_of(saved(tmp_path, lightning)).kind == "lightning"


def test_plain_values_are_read_and_others_left_out_by_name(tmp_path: Path) -> None:
    content = {
        "a": [1, (2.5, "x")],
        "t": torch.arange(3),
        "n": {"module": nn.ReLU(), 7: None},
        "d": torch.device("cpu"),
    }
    lost: list[str] = []
    root = plain_root(saved(tmp_path, content), lost)
    assert torch.equal(root.pop("t"), torch.arange(3))
    assert root == {"a": [1, (2.5, "x")], "n": {7: None}}
    assert lost == ["n.module", "d"]
    assert plain_value(object(), lost) is None


@pytest.mark.parametrize(
    ("scores", "monitor", "mode", "expected"),
    [
        ({"best_acc": 0.9}, "val_acc", "max", ("best_acc", 0.9)),
        ({"best_prec1": 91.0}, "val_acc", "max", ("best_prec1", 0.91)),
        ({"acc": 85.0, "best_acc1": 90.0}, "valid/accuracy", "max", ("best_acc1", 0.9)),
        ({"best_acc": 0.9}, "val_acc", "min", None),
        ({"best_acc": 0.9}, "val_loss", "min", None),
        ({"loss": 0.4}, "val_loss", "min", ("loss", 0.4)),
        ({"loss": 0.4}, "val_loss", "max", None),
        ({"best_mae_error": 0.3}, "val_mae", "min", ("best_mae_error", 0.3)),
        ({"bestMIoU": 0.7}, "val_iou", "max", None),
        ({"best_miou": 0.7}, "val_iou", "max", ("best_miou", 0.7)),
        ({"best": 0.7}, "val", "max", None),
    ],
)
def test_a_score_belongs_to_the_metric_of_its_name(
    scores: dict[str, float], monitor: str, mode: str, expected: tuple[str, float] | None
) -> None:
    assert score_for(scores, monitor, mode) == (expected and (expected[0], pytest.approx(expected[1])))
