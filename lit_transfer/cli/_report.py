"""What `fit` leaves behind: pictures of the run, where everything lies, and the next command."""

import csv
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from matplotlib.figure import Figure

from lit_transfer.modules import TransferModule, read_saved


def print_report(trainer: Trainer, module: LightningModule) -> None:
    """Draw the log and the module's own pictures beside the log, and print the paths and the next command."""
    for name, value in draw_report(trainer, module):
        print(f"{name:17} {value}")


def draw_report(trainer: Trainer, module: LightningModule) -> Iterator[tuple[str, str]]:
    """Draw the log and the module's own pictures beside the log, and give what lies where, and the next command.

    All processes call it, and one of them reports: Lightning asks the others for the log's folder, and would wait.
    """
    folder = Path(log_dir) if (log_dir := trainer.log_dir) else None
    if not trainer.is_global_zero:
        return
    kept = [c for c in trainer.callbacks if isinstance(c, ModelCheckpoint) and c.best_model_path]  # type: ignore[attr-defined]  # set by its connector
    best = kept[0] if kept else None
    if best is not None:
        score = best.best_model_score
        told = "" if score is None else f"  ({best.monitor} {float(score):.4f})"
        yield "best checkpoint", f"{_short(best.best_model_path)}{told}"
    if folder is not None and (folder / "metrics.csv").is_file():
        yield "log", _short(folder / "metrics.csv")
        yield "its plot", _short(plot_log(folder / "metrics.csv", folder / "metrics.png"))
    if folder is not None and isinstance(module, TransferModule):
        for name, figure in module.figures("val").items():
            figure.savefig(folder / f"{name}.png", dpi=120)
            yield name, f"{_short(folder / f'{name}.png')}  (last epoch)"
    if folder is not None and (folder / "config.yaml").is_file():
        yield "config", f"{_short(folder / 'config.yaml')}  (lit-transfer fit --config FILE runs it again)"
    if best is not None:
        # A run that goes on from a file by hand may end without an epoch that was better than what the file reached.
        paths = [path for callback in kept for path in (callback.best_model_path, callback.last_model_path) if path]
        path = next((path for path in paths if read_saved(path) is not None), best.best_model_path)
        yield "next", f"lit-transfer predict {_short(path)} PHOTOS -o out.csv"


def plot_log(log: Path, picture: Path) -> Path:
    """Draw the losses and the validation metrics of a CSVLogger's file over the epochs.

    Args:
        log: A `metrics.csv`.
        picture: File to write.

    Returns:
        `picture`.
    """
    curves = _curves(log)
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    losses, metrics = figure.subplots(1, 2)
    for name, points in curves.items():
        axes = losses if name.endswith("loss") else metrics
        axes.plot(*zip(*sorted(points.items()), strict=True), marker=".", label=name)
    for axes, title in ((losses, "loss"), (metrics, "validation")):
        axes.set(xlabel="epoch", title=title)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if axes.lines:
            axes.legend()
    figure.savefig(picture, dpi=120)
    return picture


def _curves(log: Path) -> dict[str, dict[int, float]]:
    """Name -> epoch -> value, the mean over the rows of an epoch."""
    values: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    with log.open(newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and (name == "train_loss" or name.startswith("val_")):
                    values[name][int(row["epoch"])].append(float(value))
    return {name: {epoch: sum(v) / len(v) for epoch, v in points.items()} for name, points in values.items()}


def _short(path: str | Path) -> str:
    """Write a path as seen from here, where that is shorter."""
    path = Path(path).resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
