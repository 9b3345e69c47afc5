"""`lit-transfer demo`: one task teaches another, on real handwritten digits, without a network."""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from lightning.pytorch import Callback, Trainer, seed_everything
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from lit_transfer.callbacks import FinetuningSchedule
from lit_transfer.cli._noise import only_warnings
from lit_transfer.cli._parsing import CommandParser
from lit_transfer.data import DigitsData
from lit_transfer.modules import ImageClassifier

Strategy = Literal["from scratch", "linear probe", "fine-tuning"]
STRATEGIES: tuple[Strategy, ...] = ("from scratch", "linear probe", "fine-tuning")

# Grey digits of 8 x 8 pixels, enlarged. SqueezeNet is small enough to be trained nine times in a minute.
MODEL: dict[str, Any] = {"backbone": "squeezenet1_1", "in_channels": 1, "input_size": 32}
SOURCE: dict[str, Any] = {"classes": [0, 1, 2, 3, 4]}
TARGET: dict[str, Any] = {"classes": [5, 6, 7, 8, 9], "per_class": 10, "batch_size": 10}
SOURCE_EPOCHS, TARGET_EPOCHS = 12, 20
# Five classes teach less than ImageNet: what was learned may change faster than by default.
BACKBONE_LR_FACTOR = 0.1


def main(argv: Sequence[str]) -> None:
    """Run the command with `argv`, whose first word is its name."""
    parser = CommandParser(prog="lit-transfer demo", description=__doc__)
    parser.add_argument("-o", "--output", default="lit_transfer_demo", help="folder for what the demo leaves")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each strategy")
    arguments = parser.parse_args(argv[1:])
    if arguments.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {arguments.seeds}.")
    folder = Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with only_warnings():
        _tell(Console(soft_wrap=True), folder, arguments.seeds)
    print(f"\n{time.perf_counter() - start:.0f} seconds in all")


def _tell(console: Console, folder: Path, seeds: int) -> None:
    console.print("[bold]1. A source task:[/] a SqueezeNet learns the digits 0 to 4 from random weights")
    checkpoint, accuracy = teach(folder / "digits_0_to_4.pth.tar")
    console.print(f"   right on {accuracy:.1%} of its validation digits; saved as the world saves it: {checkpoint}")
    console.print("   (keys 'module.' from DataParallel, in {epoch, state_dict, optimizer, best_acc})")

    console.print("\n[bold]2. Loading it[/] into a new model of other classes: weights='digits_0_to_4.pth.tar'")
    module = build("fine-tuning", checkpoint)
    console.print(str(module.backbone.load_report))

    console.print(f"\n[bold]3. A target task:[/] the digits 5 to 9, {TARGET['per_class']} examples of each")
    results: dict[Strategy, list[float]] = {}
    for strategy in STRATEGIES:
        runs = [transfer(strategy, checkpoint, seed) for seed in range(seeds)]
        results[strategy] = [trainer.callback_metrics["test_acc"].item() for trainer, _ in runs]
        if strategy != "from scratch":
            console.print(stage_table(strategy, *runs[-1]))
        if strategy == "fine-tuning":
            confusion = runs[-1][1].figures("test")["confusion"]
    console.print(result_table(results))

    console.print("[bold]4. Left behind[/]")
    console.print(f"   {plot_results(results, folder / 'results.png')}")
    confusion.savefig(folder / "confusion.png", dpi=120)
    console.print(f"   {folder / 'confusion.png'}")
    console.print(f"   lit-transfer fit --config {write_config(checkpoint, folder / 'finetune.yaml')}  (runs it again)")


def teach(file: Path) -> tuple[Path, float]:
    """Train the source task and save it as a hand-written loop under DataParallel would.

    Args:
        file: Where to save.

    Returns:
        `file`, and the accuracy on the source's validation digits.
    """
    seed_everything(0, verbose=False)
    module, data = _from_random_weights(), DigitsData(**SOURCE)
    trainer = quiet_trainer(SOURCE_EPOCHS)
    trainer.fit(module, data)
    accuracy = trainer.callback_metrics["val_acc"].item()
    head = module.head.state_dict()
    classifier = {"classifier.1.weight": head["weight"][:, :, None, None], "classifier.1.bias": head["bias"]}
    net = {**module.backbone.state_dict(), **classifier}  # as torchvision's model of five classes has it
    saved = {
        "epoch": SOURCE_EPOCHS,
        "state_dict": {f"module.{name}": value for name, value in net.items()},
        "optimizer": trainer.optimizers[0].state_dict(),
        "best_acc": accuracy,
    }
    torch.save(saved, file)
    return file, accuracy


def build(strategy: Strategy, checkpoint: Path) -> ImageClassifier:
    """Make the model of a strategy: random weights, or those of the source task."""
    if strategy == "from scratch":
        return _from_random_weights()
    return ImageClassifier(**MODEL, weights=str(checkpoint), backbone_lr_factor=BACKBONE_LR_FACTOR)


def _from_random_weights() -> ImageClassifier:
    """Make a model that learns everything at one rate; a higher one than this does not train at all."""
    return ImageClassifier(
        **MODEL,
        weights=None,
        backbone_lr_factor=1.0,
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.05),
    )


def transfer(strategy: Strategy, checkpoint: Path, seed: int) -> tuple[Trainer, ImageClassifier]:
    """Train the target task by a strategy, and measure it on the test digits."""
    seed_everything(seed, verbose=False)
    module = build(strategy, checkpoint)
    trainer = quiet_trainer(TARGET_EPOCHS, FinetuningSchedule("linear_probe" if strategy == "linear probe" else "full"))
    data = DigitsData(**TARGET, seed=seed)
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    return trainer, module


def stage_table(strategy: Strategy, trainer: Trainer, module: ImageClassifier) -> Table:
    """Show for each stage its parameters, how many of them trained, and the highest rate of its groups."""
    parameters = dict(module.named_parameters())
    rates = {group["name"].split(".")[0]: group["initial_lr"] for group in trainer.optimizers[0].param_groups}
    table = Table("stage", "parameters", "trainable", "learning rate", title=strategy, title_justify="left")
    for stage in module.stages:
        members = [parameters[name] for name in stage.parameters]
        total = sum(p.numel() for p in members)
        trainable = sum(p.numel() for p in members if p.requires_grad)
        rate = f"{rates[stage.name]:.1e}" if trainable else "-"
        table.add_row(stage.name, f"{total:,}", f"{trainable:,}", rate)
    return table


def result_table(results: dict[Strategy, list[float]]) -> Table:
    """Show the mean and the spread of the accuracy on the test digits."""
    runs = len(next(iter(results.values())))
    table = Table("strategy", "mean", "lowest", "highest", title=f"test accuracy, {runs} seeds", title_justify="left")
    for strategy, values in results.items():
        table.add_row(strategy, *(f"{value:.1%}" for value in (statistics.mean(values), min(values), max(values))))
    return table


def plot_results(results: dict[Strategy, list[float]], picture: Path) -> Path:
    """Draw the accuracy of every run, and the mean of each strategy, and give `picture` back."""
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for place, (strategy, values) in enumerate(results.items()):
        axes.bar(place, statistics.mean(values), color=f"C{place}", alpha=0.4, label=strategy)
        axes.plot([place] * len(values), values, "o", color=f"C{place}")
    title = f"Digits 5 to 9 from {TARGET['per_class']} examples of each"
    axes.set(xticks=range(len(results)), xticklabels=list(results), ylabel="test accuracy", ylim=(0, 1), title=title)
    figure.savefig(picture, dpi=120)
    return picture


def write_config(checkpoint: Path, file: Path) -> Path:
    """Write the configuration with which `lit-transfer fit` repeats the fine-tuning, and give `file` back."""
    config = {
        "seed_everything": 0,
        "trainer": {"max_epochs": TARGET_EPOCHS},
        "model": {
            "class_path": "lit_transfer.modules.ImageClassifier",
            "init_args": {
                **MODEL,
                "weights": str(checkpoint.resolve()),
                "backbone_lr_factor": BACKBONE_LR_FACTOR,
            },
        },
        "data": {"class_path": "lit_transfer.data.DigitsData", "init_args": TARGET},
    }
    file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return file


def quiet_trainer(epochs: int, *callbacks: Callback) -> Trainer:
    """Make a Trainer that writes nothing and validates once, at its end."""
    return Trainer(
        max_epochs=epochs,
        callbacks=list(callbacks),
        accelerator="auto",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        check_val_every_n_epoch=epochs,
        num_sanity_val_steps=0,
    )
