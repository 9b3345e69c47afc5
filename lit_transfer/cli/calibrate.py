"""`lit-transfer calibrate CKPT`: one temperature for a classifier, fitted on the validation images and kept with it."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from torch import Tensor

from lit_transfer._entry import ENTRY
from lit_transfer.calibration import Reliability, fit_temperature, plot_reliability, reliability
from lit_transfer.cli._noise import LEAVES_NOTHING, only_warnings
from lit_transfer.cli._places import check_places
from lit_transfer.cli._tables import as_count, make_table, show
from lit_transfer.cli.training import TransferCLI, _value_of, run_cli
from lit_transfer.modules import ImageClassifier, read_saved
from lit_transfer.restore import save_atomically

_NEEDS = (
    "calibrate needs a checkpoint that lit-transfer fit wrote, which keeps the temperature: lit-transfer calibrate "
    "CKPT --data.root DIR."
)
_ROUGH = (
    "The ECE has grown though the NLL, which was fitted, has fallen: over 15 bins of few images it is a rough measure."
)


class CalibratingTrainer(Trainer):
    """Validates, and keeps what the module answered.

    Attributes:
        logits: Answers (N, num_classes) before temperature and softmax.
        labels: True classes (N,).
    """

    logits: Tensor
    labels: Tensor

    def calibrate(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Fit a classifier's temperature on the validation images, and write a checkpoint that has it.

        Args:
            model: The classifier.
            datamodule: Its data; the validation images are meant.
            ckpt_path: Its checkpoint.
            weights_only: As for validate.
        """
        settings: Any = self  # Lightning does not annotate what its connectors set
        settings.callbacks.append(_Keep())
        self.validate(model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False, weights_only=weights_only)


class _Keep(Callback):
    """Takes the module's answer from its `forward`, whatever its `step` does, and the labels from the batch."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.answers: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.handle = pl_module.register_forward_hook(lambda module, images, answer: self.answers.append(answer))

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *rest: Any) -> None:
        self.labels.append(rest[0][1].cpu())
        self.answers[-1] = self.answers[-1].float().cpu()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.handle.remove()
        assert isinstance(trainer, CalibratingTrainer)
        trainer.logits, trainer.labels = torch.cat(self.answers), torch.cat(self.labels)


class CalibrateCLI(TransferCLI):
    """Takes checkpoint and data as `validate` does."""

    trainer: CalibratingTrainer

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Have the one command."""
        return {"calibrate": {"model", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add where the answers go."""
        super().add_arguments_to_parser(parser)
        output = "file for the calibrated checkpoint; CKPT with .calibrated before its ending by default"
        parser.add_argument("-o", "--output", type=str | None, help=output)
        parser.add_argument("--plot", type=str | None, help="file for reliability diagrams before and after")
        parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make a trainer for one process, which leaves nothing behind.

        Raises:
            ValueError: Several devices are asked for.
        """
        trainer = super().instantiate_trainer(**{**LEAVES_NOTHING, **kwargs})
        if trainer.world_size > 1:
            raise ValueError("calibrate runs on one device: give --trainer.devices=1.")
        return trainer

    def before_calibrate(self) -> None:
        """Refuse what is wrong before any image is read.

        Raises:
            ValueError: No checkpoint of a classifier, or a place for the answers that there is not.
        """
        source = self._get(self.config, "ckpt_path")
        if read_saved(source) is None:
            raise ValueError(f"{_NEEDS} {source} is another one.")
        if not isinstance(self.model, ImageClassifier):
            raise ValueError(  # noqa: TRY004  # the argument is a file, whose content is not what is needed
                f"calibrate is for an ImageClassifier, and {source} holds a {type(self.model).__name__}: several "
                "labels for an image would need a temperature each, and numbers have no probabilities."
            )
        self._source = Path(source)
        output = self._get(self.config, "output")
        self._target = Path(output) if output else self._source.with_suffix(f".calibrated{self._source.suffix}")
        check_places(output=self._target, plot=self._get(self.config, "plot"))

    def after_calibrate(self) -> None:
        """Fit, write, print and draw."""
        logits, labels = self.trainer.logits, self.trainer.labels
        temperature = fit_temperature(logits, labels)
        saved = torch.load(self._source, map_location="cpu", weights_only=True)
        old = saved[ENTRY].get("temperature", 1.0)
        saved[ENTRY]["temperature"] = temperature
        save_atomically(saved, self._target)
        found = {f"before (T = {old:.3g})": old, f"after (T = {temperature:.3g})": temperature}
        measured = {title: reliability(logits / value, labels) for title, value in found.items()}
        if picture := self._get(self.config, "plot"):
            plot_reliability(measured).savefig(picture, dpi=120)
        self._tell(temperature, len(labels), measured)

    def _tell(self, temperature: float, images: int, measured: dict[str, Reliability]) -> None:
        keys = ("nll", "ece", "accuracy")
        if self._get(self.config, "json"):
            before, after = ({key: getattr(one, key) for key in keys} for one in measured.values())
            told = {"temperature": temperature, "images": images, "before": before, "after": after}
            print(json.dumps({**told, "checkpoint": str(self._target)}))
            return
        errors = [one.ece for one in measured.values()]
        notes = [_ROUGH] if errors[1] > errors[0] else []
        rows = [(title, *(f"{getattr(one, key):.4f}" for key in keys)) for title, one in measured.items()]
        show(
            f"temperature {temperature:.4g}, fitted on {as_count(images, 'validation image')}, on which it is measured",
            make_table(["", "NLL", "ECE", "accuracy"], rows, numbers=["NLL", "ECE", "accuracy"]),
            *notes,
            f"{self._target}  (predict, load_predictor and predict_step answer calibrated probabilities)",
        )


def main(argv: Sequence[str]) -> None:
    """Run the command with `argv`, whose first word is its name; the second may be the checkpoint."""
    words = list(argv)
    if len(words) > 1 and not words[1].startswith("-"):
        words.insert(1, "--ckpt_path")
    if _value_of(words, "--ckpt_path") is None:
        raise ValueError(_NEEDS)
    # The checkpoint is only measured: that its callbacks are missing does not matter.
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks")
    with only_warnings():
        run_cli(CalibrateCLI, words, trainer_class=CalibratingTrainer, save_config_callback=None)
