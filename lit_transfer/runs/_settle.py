"""What is measured when one of several runs has been trained, and what it leaves for the others."""

import csv
import io
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lit_transfer._answers import answer_columns
from lit_transfer.runs._ledger import Ledger, write_text

Measured = Literal["last", "best"]
MEASURED: tuple[Measured, ...] = get_args(Measured)
OUT_OF_FOLD = "out_of_fold.csv"
_ROWS, _OUTPUTS = "predictions.csv", "predictions.pt"


def settle(
    trainer: Trainer, module: LightningModule, datamodule: Any, ledger: Ledger, number: int, measured: Measured
) -> None:
    """Measure a run that has been trained, keep its answers if it is a fold, and note that it is done.

    Args:
        trainer: The one that trained it.
        module: What it trained.
        datamodule: On what.
        ledger: The record of all runs.
        number: Which run this is.
        measured: The weights: `"last"` as training ended; `"best"` those of the best checkpoint by its own metric,
            which was chosen on the same images, so that the numbers flatter.

    Raises:
        RuntimeError: If the training was interrupted, or there is no best checkpoint.
    """
    if trainer.interrupted:
        raise RuntimeError(f"{ledger.name(number)} was interrupted; what is missing is trained when you start again.")
    best = _best(trainer) if measured == "best" else None
    trainer.loggers = []  # what follows belongs to no epoch of the log
    values = trainer.validate(module, datamodule=datamodule, ckpt_path=best, verbose=False)[0]
    pooled = dict(ledger.pooled)
    if ledger.kind == "folds":
        _keep_answers(trainer, module, datamodule, ledger.place(number), number)
        pooled = _pool(module, ledger, [*ledger.done, number])
    ledger.note(number, {name: float(value) for name, value in values.items()}, pooled)


def check_single(trainer: Trainer) -> None:
    """Refuse several processes.

    Raises:
        ValueError: If there are some.
    """
    if trainer.world_size > 1:
        raise ValueError("several runs go one after the other on one device: give --trainer.devices=1 (devices=1).")


def _best(trainer: Trainer) -> str:
    callbacks: Any = trainer
    for callback in callbacks.callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor and callback.best_model_path:
            return callback.best_model_path
    raise RuntimeError("measured='best' needs a ModelCheckpoint with a monitor that has saved; give measured='last'.")


def _keep_answers(trainer: Trainer, module: LightningModule, datamodule: Any, place: Path, number: int) -> None:
    """Write the answers for a fold's images: as a table, and as tensors for what is measured over all folds."""
    rows = datamodule.val_rows()
    batches: Any = trainer.predict(module, dataloaders=datamodule.val_dataloader())
    outputs = torch.cat([batch.float().cpu() for batch in batches])
    if len(outputs) != len(rows):
        raise ValueError(
            f"fold {number} has {len(rows)} images and {len(outputs)} answers: leave limit_predict_batches out."
        )
    describe = getattr(module, "describe_answer", Tensor.tolist)
    answers = [answer_columns(describe(output)) for output in outputs]
    table = [{**row, "fold": number, **answer} for row, answer in zip(rows, answers, strict=True)]
    write_text(place / _ROWS, _as_csv(table))
    targets = torch.tensor([target for _, target in datamodule.val_dataset.samples])
    torch.save({"outputs": outputs, "targets": targets}, place / _OUTPUTS)


def _as_csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _pool(module: LightningModule, ledger: Ledger, done: list[int]) -> dict[str, float]:
    """Write the table of all folds that are done, and measure their answers together where the module can."""
    places = [ledger.place(number) for number in sorted(done)]
    rows: list[dict[str, Any]] = []
    for place in places:
        with (place / _ROWS).open(newline="", encoding="utf-8") as file:
            rows += csv.DictReader(file)
    write_text(ledger.folder / OUT_OF_FOLD, _as_csv(rows))
    kept = [torch.load(place / _OUTPUTS, weights_only=True) for place in places]
    measure = getattr(module, "measure", None)
    if measure is None:
        return {}
    found: dict[str, float] = measure(torch.cat([k["outputs"] for k in kept]), torch.cat([k["targets"] for k in kept]))
    return found
