"""`lit-transfer schedule CONFIG`: which stages would train when and at which rate, before any training."""

import importlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lit_transfer.callbacks import FinetuningSchedule, LoRA
from lit_transfer.cli._dry_run import DryRun, DryTrainer
from lit_transfer.cli._noise import only_warnings
from lit_transfer.cli._parsing import each_of
from lit_transfer.cli._places import check_places
from lit_transfer.cli.training import TransferCLI, run_cli
from lit_transfer.modules import TransferModule
from lit_transfer.schedule import phase_table, plot_timeline, stretches

# What `fit` would use and this run must not: it is one process on the CPU, and leaves nothing behind.
_DRY: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "num_nodes": 1,
    "strategy": "auto",
    "precision": None,
    "plugins": None,
    "profiler": None,
    "sync_batchnorm": False,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


class ScheduleCLI(TransferCLI):
    """Takes what `fit` takes, builds the module without its weights, and tells what the schedule would do."""

    trainer: DryTrainer

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Have the one command."""
        return {"schedule": {"model", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add where the picture goes, and the form of the answer."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--plot", type=str | None, default=None, help="file for a picture of rates and stages")
        parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")

    def before_instantiate_classes(self) -> None:
        """Ask for no weights: what trains when does not depend on them, and a download would take its time."""
        model = self._get(self.config, "model")
        arguments = model.get("init_args") or {}
        self._weights: str | None = arguments.get("weights")
        if self._weights is not None and _is_ours(model["class_path"]):
            arguments["weights"] = None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make a trainer that trains nothing, with the schedule as its only callback."""
        check_places(plot=self._get(self.config, "plot"))
        given = self._get(self.config_init, "trainer")
        callbacks = each_of(given.get("callbacks"), Callback)
        if any(isinstance(c, GradientAccumulationScheduler) for c in callbacks):
            raise ValueError(
                "GradientAccumulationScheduler changes the number of steps from epoch to epoch, which is not followed "
                "here: give --trainer.accumulate_grad_batches, or leave the callback out to see the rest."
            )
        kept = [c for c in callbacks if isinstance(c, FinetuningSchedule | LoRA)]
        # Not that of TransferCLI, which adds callbacks and looks for free GPUs.
        trainer = LightningCLI.instantiate_trainer(self, **{**_DRY, "callbacks": kept, **kwargs})
        assert isinstance(trainer, DryTrainer)
        gpus = self._get(self.config_init, "gpus")
        trainer.processes = gpus or _processes(given.accelerator, given.devices, given.num_nodes)
        return trainer

    def before_schedule(self) -> None:
        """Let the backbone say which weights it would have: the preset `from_scratch` refuses them."""
        if isinstance(self.model, TransferModule) and self._weights is not None:
            self.model.backbone.weights = self._weights

    def after_schedule(self) -> None:
        """Print the table, and draw the picture."""
        answer: DryRun = self.trainer.answer
        print(json.dumps(_plain(answer)) if self._get(self.config, "json") else _in_words(answer))
        if picture := self._get(self.config, "plot"):
            plot_timeline(answer.moments).savefig(picture, dpi=120)


def _is_ours(class_path: str) -> bool:
    module, _, name = class_path.rpartition(".")
    return issubclass(getattr(importlib.import_module(module), name), TransferModule)


def _processes(accelerator: Any, devices: Any, num_nodes: int) -> int:
    """How many processes `fit` would start; a machine that lacks the devices asked for is taken to have them."""
    try:
        trainer = Trainer(accelerator=accelerator, devices=devices, num_nodes=num_nodes, logger=False)
    except MisconfigurationException:
        listed = devices.split(",") if isinstance(devices, str) and "," in devices else devices
        number = len(listed) if isinstance(listed, list) else int(listed) if str(listed).isdigit() else 1
        return number * num_nodes
    return trainer.num_devices * trainer.num_nodes


def _in_words(answer: DryRun) -> str:
    shared = f" on {answer.processes} processes" if answer.processes > 1 else ""
    size = f"{answer.epochs} epochs of {answer.steps_per_epoch} optimizer steps{shared}, {len(answer.moments)} in all"
    return "\n".join([size, phase_table(answer.moments), *(f"Note: {note}" for note in answer.notes)])


def _plain(answer: DryRun) -> dict[str, Any]:
    phases = [{**asdict(stretch), "phase": stretch.phase + 1} for stretch in stretches(answer.moments)]
    plain = {key: getattr(answer, key) for key in ("epochs", "steps_per_epoch", "processes")}
    return {**plain, "steps": len(answer.moments), "phases": phases, "notes": list(answer.notes)}


def main(argv: Sequence[str]) -> None:
    """Run the command with `argv`, whose first word is its name; the second may be a config file."""
    words = list(argv)
    if len(words) > 1 and not words[1].startswith("-"):
        if not Path(words[1]).is_file():
            raise FileNotFoundError(f"no config file at {words[1]!r}.")
        words.insert(1, "--config")
    with only_warnings():
        run_cli(ScheduleCLI, words, trainer_class=DryTrainer, save_config_callback=None)
