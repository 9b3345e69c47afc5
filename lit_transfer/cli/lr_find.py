"""`lit-transfer lr-find`: a learning rate for the head, found by raising it until the loss grows, and its picture."""

import json
import shlex
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from jsonargparse.typing import PositiveFloat, PositiveInt
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.tuner.tuning import Tuner
from matplotlib.figure import Figure
from torch.optim import Optimizer

from lit_transfer.callbacks import FinetuningSchedule
from lit_transfer.cli._noise import LEAVES_NOTHING, only_warnings
from lit_transfer.cli._parsing import each_of
from lit_transfer.cli._places import check_places
from lit_transfer.cli.training import TransferCLI, run_cli
from lit_transfer.modules import TransferModule
from lit_transfer.schedule import while_stepping

_QUIET: dict[str, Any] = {
    **LEAVES_NOTHING,
    "check_val_every_n_epoch": 10**9,  # only the training loss is looked at
}
_FEWEST = 20  # losses below which a curve says nothing
_OWN = ("--plot", "--num_training", "--min_lr", "--max_lr", "--model.optimizer.lr")  # options that fit does not get


class FindingTrainer(Trainer):
    """Runs Lightning's finder with the module's own proportions between the rates of its groups.

    Attributes:
        range: Lowest and highest rate, and the number of steps from one to the other.
        optimizer: The module's optimizer.
        found: Rates of the head, and the smoothed loss at each.
    """

    range: tuple[float, float, int]
    optimizer: Optimizer
    found: dict[str, list[float]]

    def lr_find(self, model: LightningModule, datamodule: LightningDataModule | None = None) -> None:
        """Raise the learning rate step by step, and tell at which one the loss falls fastest; no weight is kept.

        Args:
            model: The module that would be trained.
            datamodule: Its data.
        """
        configure = model.configure_optimizers

        def configured() -> Any:
            made = configure()
            first = made["optimizer"] if isinstance(made, dict) else made
            if isinstance(first, Optimizer):  # Lightning refuses several
                self.optimizer = first
                _keep_proportions(first)
            return made

        # The finder gives all groups one rate, in a hook that comes before those of other callbacks.
        model.configure_optimizers = configured  # type: ignore[method-assign]
        low, high, steps = self.range
        options: dict[str, Any] = {"min_lr": low, "max_lr": high, "num_training": steps, "update_attr": False}
        finder = Tuner(self).lr_find(model, datamodule=datamodule, **options)
        assert finder is not None
        self.found = finder.results


def _keep_proportions(optimizer: Optimizer) -> None:
    """Multiply each stage's rate with its share of the head's while the optimizer steps."""
    groups = optimizer.param_groups
    if all("stage" in group for group in groups):
        rates = {group["stage"]: group.get("initial_lr", group["lr"]) for group in groups}
        if not (head := rates.get("head", groups[-1]["lr"])):
            raise ValueError("lr-find looks for the head's learning rate, and that is 0: give --model.optimizer.lr.")
        shares = {stage: rate / head for stage, rate in rates.items()}
        while_stepping(optimizer, lambda: shares)


def suggest_rate(rates: Sequence[float], losses: Sequence[float]) -> float:
    """Give the rate at which the loss falls fastest over the logarithm of the rate, before its lowest point.

    Source: Smith 2017, Cyclical Learning Rates for Training Neural Networks, arXiv:1506.01186, section 3.3, and the
    "steep" rule of fastai. Lightning's own suggestion takes the slope over the rate itself, which favours the lowest.

    Args:
        rates: Rising rates.
        losses: Smoothed losses.

    Raises:
        ValueError: The curve is too short, or the loss never falls.
    """
    curve, places = torch.tensor(losses, dtype=torch.float64), torch.tensor(rates, dtype=torch.float64).log10()
    finite = torch.isfinite(curve)
    curve, places = curve[finite], places[finite]
    if len(curve) < _FEWEST:
        raise ValueError(
            f"there are only {len(curve)} losses to judge by, and {_FEWEST} are needed: the loss grew to four times "
            "its lowest value, or is no number, after these steps, or --num_training is too small. Give a lower "
            "--min_lr and --max_lr, or more --num_training."
        )
    curve, places = curve[_FEWEST // 4 :], places[_FEWEST // 4 :]  # a mean of few losses goes up and down
    start, lowest = curve[0], int(curve.argmin())
    if lowest < 2 or curve[lowest] > 0.98 * start:
        raise ValueError(
            f"the loss never falls: {start:.3g} at first, {curve[lowest]:.3g} at best, between the rates "
            f"{rates[0]:.3g} and {rates[-1]:.3g}. Give a higher --max_lr or more --num_training; or see whether the "
            "labels are right, and anything trains."
        )
    slope = torch.gradient(curve[: lowest + 1], spacing=(places[: lowest + 1],))[0]
    return float(10 ** places[int(slope.argmin())])


def plot_rates(rates: Sequence[float], losses: Sequence[float], suggestion: float | None) -> Figure:
    """Draw the smoothed loss over the learning rate of the head, and the suggestion."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses)
    if suggestion is not None:
        axes.axvline(suggestion, color="tab:red", linestyle="--", label=f"suggestion: {suggestion:.2g}")
        axes.legend()
    axes.set(xscale="log", xlabel="learning rate of the head", ylabel="smoothed training loss")
    return figure


class FindCLI(TransferCLI):
    """Takes the model and the data as `fit` does."""

    trainer: FindingTrainer
    words: Sequence[str] = ()

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Have the one command, whose method has another name."""
        return {"lr_find": {"model", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the range, and where the answers go."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--min_lr", type=PositiveFloat, default=1e-6, help="the head's rate in the first step")
        parser.add_argument("--max_lr", type=PositiveFloat, default=1.0, help="the head's rate in the last step")
        parser.add_argument("--num_training", type=PositiveInt, default=100, help="steps from one to the other")
        parser.add_argument("--plot", type=str | None, help="file for a picture of the loss over the rate")
        parser.add_argument("--json", action="store_true", help="one JSON object instead of words")
        parser.set_defaults({"trainer.max_epochs": -1})

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make what leaves nothing behind, with the schedule as its only callback.

        Raises:
            FileNotFoundError: There is no folder for the picture.
            ValueError: The range is empty, too few steps are asked for, or the picture is of an unknown type.
        """
        low, high, steps = (self._get(self.config, name) for name in ("min_lr", "max_lr", "num_training"))
        if low >= high or steps < _FEWEST:
            raise ValueError(
                f"--min_lr {low:g} must be below --max_lr {high:g}, and --num_training {steps} at least {_FEWEST}."
            )
        check_places(plot=self._get(self.config, "plot"))
        given = each_of(self._get(self.config_init, "trainer").get("callbacks"), Callback)
        kept = [c for c in given if isinstance(c, FinetuningSchedule)]
        self._place = tempfile.TemporaryDirectory()  # of the finder's copy of the weights
        own = {**_QUIET, "callbacks": kept, "default_root_dir": self._place.name}
        # Not that of TransferCLI, which adds callbacks and looks for free GPUs.
        trainer = LightningCLI.instantiate_trainer(self, **{**own, **kwargs})
        assert isinstance(trainer, FindingTrainer)
        trainer.range = (low, high, steps)
        return trainer

    def after_lr_find(self) -> None:
        """Draw and tell; a curve that tells nothing is drawn all the same."""
        self._place.cleanup()
        rates, losses = self.trainer.found["lr"][: len(self.trainer.found["loss"])], self.trainer.found["loss"]
        suggestion = None
        try:
            suggestion = suggest_rate(rates, losses)
        finally:
            if picture := self._get(self.config, "plot"):
                plot_rates(rates, losses, suggestion).savefig(picture, dpi=120)
        command = self._command(suggestion) if isinstance(self.model, TransferModule) else None
        if self._get(self.config, "json"):
            print(json.dumps({"suggestion": suggestion, "command": command, "lr": rates, "loss": losses}))
            return
        print(f"learning rate of the head: {suggestion:.2g}, where the loss falls fastest ({len(losses)} steps)")
        print("the other groups keep their proportion to it (--model.backbone_lr_factor, --model.layer_decay)")
        if command is not None:
            print(command)

    def _command(self, suggestion: float) -> str:
        """Write the fit with this rate: the words of this command, and the optimizer by name."""
        words, kept = list(self.words), []
        while words:
            word = words.pop(0)
            if word in _OWN:
                words = words[1:]
            elif word != "--json" and word.partition("=")[0] not in _OWN:
                kept.append(word)
        if not any(word.partition("=")[0] == "--model.optimizer" for word in kept):
            optimizer = self.trainer.optimizer
            kept += ["--model.optimizer", type(optimizer).__name__]
            decay = optimizer.defaults.get("weight_decay")
            kept += [f"--model.optimizer.weight_decay={decay:g}"] if decay else []
        return shlex.join(["lit-transfer", "fit", *kept, f"--model.optimizer.lr={suggestion:.2g}"])


def main(argv: Sequence[str]) -> None:
    """Run the command with `argv`, whose first word is its name."""
    FindCLI.words = list(argv[1:])
    with only_warnings():
        run_cli(FindCLI, ["lr_find", *argv[1:]], trainer_class=FindingTrainer, save_config_callback=None)
