"""`schedule` tells before training what `fit` then does, downloads nothing, and leaves nothing but the picture."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader

from lit_transfer import param_groups
from lit_transfer.callbacks import FinetuningSchedule
from lit_transfer.cli._dry_run import DryTrainer

PHASES: list[Any] = [
    {"train": "head", "warmup": 2},
    {"at": {"epoch": 1}, "train": ["head", "stage2"], "layer_decay": 0.5},
    {"at": {"fraction": 0.8}, "train": "all", "lr": 0.02},
]

PLATEAU = {"class_path": "lightning.pytorch.cli.ReduceLROnPlateau", "init_args": {"monitor": "val_loss"}}

GROWING = {"class_path": "GradientAccumulationScheduler", "init_args": {"scheduling": {0: 2}}}


def config(phases: Any, **trainer: Any) -> dict[str, Any]:
    callback = {"class_path": "lit_transfer.callbacks.FinetuningSchedule", "init_args": {"phases": phases}}
    return {
        "trainer": {"max_epochs": 3, "enable_progress_bar": False, "callbacks": [callback], **trainer},
        "model": {
            "class_path": "lit_transfer.modules.ImageClassifier",
            "init_args": {"backbone": "squeezenet1_1", "in_channels": 1},
        },
        "data": {
            "class_path": "lit_transfer.data.DigitsData",
            "init_args": {"per_class": 4, "classes": [0, 1], "batch_size": 2},
        },
    }


def write(content: dict[str, Any], path: str = "config.yaml") -> str:
    Path(path).write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_a_table_and_a_picture_and_nothing_else(run) -> None:
    content = config(PHASES)
    content["trainer"]["callbacks"] += [{"class_path": "ModelCheckpoint"}, {"class_path": "LearningRateFinder"}]
    code, out, err = run("schedule", write(content), "--plot", "schedule.png", "--trainer.max_epochs=5")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == "5 epochs of 4 optimizer steps, 20 in all"
    assert [line.split()[:3] for line in lines[2:]] == [["1", "0", "0-3"], ["2", "1-3", "4-15"], ["3", "4", "16-19"]]
    assert lines[2].split()[3] == "head"
    assert {path.name for path in Path().iterdir()} == {"config.yaml", "schedule.png"}
    assert Path("schedule.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_told_is_what_fit_logs(run) -> None:
    content = config(PHASES, accelerator="cpu", log_every_n_steps=1)
    content["trainer"]["callbacks"].append({"class_path": "lit_transfer.callbacks.TrainabilityAudit"})
    content["model"]["init_args"]["weights"] = None
    code, out, err = run("schedule", "--config", write(content), "--json")
    assert code == 0, err
    told = json.loads(out)
    assert (told["steps"], told["epochs"], told["processes"]) == (12, 3, 1)
    assert run("fit", "--config", "config.yaml")[0] == 0
    with Path("runs/version_0/metrics.csv").open(newline="") as file:
        rows = {int(row["step"]): row for row in csv.DictReader(file) if row["lr/head"]}
    for phase in told["phases"]:
        first, last = phase["steps"]
        for stage in phase["trains"]:
            rates = [float(rows[step][f"lr/{stage}"]) for step in range(first, last + 1)]
            expected = phase["lr"].get(stage, [0.0, 0.0, 0.0])
            assert [rates[0], max(rates), rates[-1]] == pytest.approx(expected), (phase["phase"], stage)


@pytest.mark.parametrize(
    ("content", "words", "told"),
    [
        (config("full"), ["--model.lr_scheduler", json.dumps(PLATEAU)], "ReduceLROnPlateau depends on a metric"),
        (
            config([{"train": "head"}, {"when": {"plateau": "val_loss"}, "train": "all"}]),
            [],
            "Phase 2 waits for val_lo",
        ),
        (config([{"train": "head"}, {"at": {"epoch": 3}, "train": "all"}]), [], "Phase 2 is never reached"),
        (config("full", callbacks=None), [], "no FinetuningSchedule.*callbacks.phases=gradual"),
        (config("full"), ["--trainer.devices=2"], "3 epochs of 2 optimizer steps on 2 processes, 6 in all"),
        (config("full"), ["--trainer.accelerator=gpu", "--trainer.devices=0,1"], "steps on 2 processes"),
        (config("full"), ["--gpus=2"], "3 epochs of 2 optimizer steps on 2 processes, 6 in all"),
        (config("full"), ["--trainer.max_steps=5"], "3 epochs of 4 optimizer steps, 5 in all"),
    ],
    ids=["plateau scheduler", "metric", "unreached", "no schedule", "devices", "no such devices", "gpus", "steps"],
)
def test_what_cannot_be_known_or_may_not_be_meant_is_told(run, content: Any, words: list[str], told: str) -> None:
    code, out, err = run("schedule", write(content), *words)
    assert code == 0, err
    assert re.search(told, out), out


@pytest.mark.parametrize(
    ("content", "words", "told"),
    [
        (None, ["nowhere.yaml"], "nowhere.yaml"),
        (config("full"), ["config.yaml", "--trainer.max_epochs=-1"], "max_epochs or --trainer.max_steps"),
        (config("full"), ["config.yaml", "--plto=a.png"], "plot"),
        (config("from_scratch"), ["config.yaml"], "weights=None"),
        (config([{"train": "stage9"}]), ["config.yaml"], "stage9"),
        (
            config("full", callbacks=[GROWING]),
            ["config.yaml"],
            "accumulate_grad_batches",
        ),
        (config("full"), ["config.yaml", "--plot=a.docx"], "type 'docx'"),
    ],
    ids=["no file", "no end", "wrong flag", "from scratch with weights", "wrong stage", "accumulation", "picture"],
)
def test_what_is_wrong_is_one_line(run, content: Any, words: list[str], told: str) -> None:
    if content is not None:
        write(content)
    code, out, err = run("schedule", *words)
    lines = [line for line in err.splitlines() if "error:" in line]
    assert (code, out, len(lines)) == (2, "", 1)
    assert told in lines[0]


class Recorded(SGD):
    """Remembers the rates of each step, which the factors of a phase change only while it lasts."""

    def step(self, closure: Any = None) -> Any:
        self.__dict__.setdefault("seen", []).append({group["stage"]: group["lr"] for group in self.param_groups})
        return super().step(closure)


class Small(LightningModule):
    def __init__(self, interval: str, frequency: int) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.when = {"interval": interval, "frequency": frequency}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self(batch).sum()

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(torch.ones(10, 4), 2)

    def configure_optimizers(self) -> Any:
        optimizer = Recorded(param_groups(self, 0.1))
        return [optimizer], [{"scheduler": StepLR(optimizer, 1, 0.5), **self.when}]


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize(
    ("interval", "frequency", "options"),
    [
        ("step", 1, {}),
        ("step", 2, {}),
        ("step", 2, {"accumulate_grad_batches": 2}),
        ("step", 5, {"accumulate_grad_batches": 2}),
        ("epoch", 2, {"max_steps": 17}),
    ],
)
def test_schedulers_of_any_frequency_step_as_in_training(interval: str, frequency: int, options: Any) -> None:
    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    settings = {"max_epochs": 4, "enable_model_summary": False, **quiet, **options}
    dry, real = (kind(**settings, callbacks=[FinetuningSchedule("full")]) for kind in (DryTrainer, Trainer))
    dry.schedule(Small(interval, frequency))
    real.fit(Small(interval, frequency))
    assert [moment.lr for moment in dry.answer.moments] == real.optimizers[0].seen
