"""Labels and counts of blood cells, from pretrained features and from scratch: python tests/benchmarks/blood_cells.py

BCCD (github.com/Shenggan/BCCD_Dataset, MIT) has 364 photos, 205 for training, 87 for validation and 72 for tests, with
a box around each red cell (RBC), white cell (WBC) and platelet. Which kinds a photo shows are its labels, how many of
each its numbers. From the pretrained features a head is trained on features that are computed once; from scratch all
weights train. Both see the same images in as many steps, and what counts is the network after the last of them. Give
the folder of BCCD and the file of the weights, or set LIT_TRANSFER_REAL.

A run that stands in the file of --keep is not run again, so that several processes may share the work, one after the
other, and a last one prints the tables.
"""

import argparse
import csv
import json
import os
import platform
import statistics
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from sklearn.metrics import average_precision_score, f1_score, r2_score
from torch import Tensor

from lit_transfer.callbacks import FeatureCaching, FinetuningSchedule
from lit_transfer.cli._noise import only_warnings
from lit_transfer.data import TableData
from lit_transfer.modules import ImageRegressor, MultiLabelClassifier

CELLS = ["RBC", "WBC", "Platelets"]
COUNTS = [f"{cell}_count" for cell in CELLS]
SPLITS = ("train", "val", "test")
STARTS = ("pretrained", "from scratch")
TASKS = ("labels", "counts")
Scores = dict[str, float]


def write_table(bccd: Path, file: Path) -> dict[str, list[list[int]]]:
    """Write a row for each photo: path, split, 0 or 1 for each kind of cell, how many of each; give the counts."""
    folder = bccd / "BCCD" if (bccd / "BCCD").is_dir() else bccd
    found: dict[str, list[list[int]]] = {}
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["path", "split", *CELLS, *COUNTS])
        for split in SPLITS:
            names = (folder / f"ImageSets/Main/{split}.txt").read_text().split()
            found[split] = [count_cells(folder / f"Annotations/{name}.xml") for name in names]
            for name, counts in zip(names, found[split], strict=True):
                photo = folder / f"JPEGImages/{name}.jpg"
                writer.writerow([photo.resolve(), split, *(int(count > 0) for count in counts), *counts])
    return found


def count_cells(boxes: Path) -> list[int]:
    """Count the boxes of each kind in a VOC file."""
    kinds = Counter(box.findtext("name") for box in ET.parse(boxes).iter("object"))
    return [kinds[cell] for cell in CELLS]


def fit(task: str, start: str, seed: int, table: Path, given: argparse.Namespace) -> dict[str, Tensor]:
    """Train once, and give answers and targets (2, N, 3) of the validation and test photos."""
    seed_everything(seed, verbose=False)
    labels = task == "labels"
    data = TableData(
        table,
        16,
        root="/",
        target=CELLS if labels else COUNTS,
        task="multilabel" if labels else "number",
        split="split",
        augment="none",
        image_size=given.image_size,
        seed=seed,
        num_workers=0,
        keep_decoded=True,
    )
    arguments: dict[str, Any] = {"weights": given.weights}
    callbacks: list[Callback] = [FinetuningSchedule("linear_probe"), FeatureCaching(folder=table.parent / "features")]
    if start == "from scratch":  # one rate for all: a higher one than this does not train at all
        callbacks = []
        arguments = {"weights": None, "backbone_lr_factor": 1.0}
        arguments["optimizer"] = lambda groups: torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.05)
    module = (MultiLabelClassifier if labels else ImageRegressor)("squeezenet1_0", **arguments)
    trainer = Trainer(
        max_epochs=given.epochs,
        accelerator="cpu",
        precision=given.precision,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        check_val_every_n_epoch=given.epochs,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    thresholds = {"thresholds": module.thresholds} if labels else {}
    return {**module.records, **thresholds}


def measure(task: str, records: Mapping[str, Tensor]) -> Scores:
    """Measure answers to the validation and test photos."""
    scores: Scores = {}
    for split in ("val", "test"):
        answers, targets = records[split].double().numpy()
        if task == "labels":
            given = records[split][0].sigmoid() >= records["thresholds"]
            precision = [average_precision_score(*column) for column in zip(targets.T, answers.T, strict=True)]
            scores[f"{split} mAP"] = statistics.fmean(precision)
            scores |= named(f"{split} AP", precision)
            scores |= named(f"{split} F1", f1_score(targets, given.numpy(), average=None))
        else:
            scores |= named(f"{split} MAE", abs(answers - targets).mean(0))
            scores |= named(f"{split} R2", r2_score(targets, answers, multioutput="raw_values"))
    return scores


def named(measure: str, values: Iterable[float]) -> Scores:
    """Name the values of a measure by the cells."""
    return {f"{measure}, {cell}": float(value) for cell, value in zip(CELLS, values, strict=True)}


def constant(task: str, counts: Mapping[str, list[list[int]]]) -> Scores:
    """Measure the same answer to every photo: all labels, or the means of the training photos."""
    mean = torch.tensor(counts["train"]).double().mean(0)
    records: dict[str, Tensor] = {"thresholds": torch.zeros(3)}
    for split in ("val", "test"):
        targets = torch.tensor(counts[split]).double()
        if task == "labels":
            targets = (targets > 0).double()
        records[split] = torch.stack([mean.expand_as(targets), targets])
    return measure(task, records)


def show(task: str, runs: Mapping[str, list[Scores]], baseline: Scores) -> None:
    """Print a row for each measure: mean and sample standard deviation over the seeds."""
    print(f"\n| {task} | pretrained | from scratch | always the same answer |\n|---|---|---|---|")
    for name, value in baseline.items():
        cells = []
        for start in STARTS:
            values = [run[name] for run in runs[start]]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.3f}{spread}" if values else "")
        print(f"| {name} | {' | '.join(cells)} | {value:.3f} |")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    real = Path(os.environ.get("LIT_TRANSFER_REAL", Path(__file__).parents[3] / "shared" / "real"))
    weights = real / "weights" / "squeezenet1_0_imagenet_frozen_HamzaElhmd.pt"
    parser.add_argument("data", type=Path, nargs="?", default=real / "data" / "BCCD")
    parser.add_argument("weights", nargs="?", default=str(weights))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=STARTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--image_size", type=int, help="in pixels; that of the weights if not given")
    parser.add_argument("--precision", default="bf16-mixed", help="32-true where the processor has no AMX")
    parser.add_argument("--keep", type=Path, help="JSON lines of the runs that are done; new ones are added")
    return parser.parse_args()


def run(task: str, start: str, seed: int, table: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Train and measure once, or give what is kept of that."""
    about = {"task": task, "start": start, "seed": seed}
    kept = given.keep.read_text().splitlines() if given.keep and given.keep.exists() else []
    for done in map(json.loads, kept):
        if about.items() <= done.items():
            return done
    began = time.perf_counter()
    scores = measure(task, fit(task, start, seed, table, given))
    done = {**about, "seconds": time.perf_counter() - began, "scores": scores}
    if given.keep:
        with given.keep.open("a") as file:
            print(json.dumps(done), file=file)
    return done


def main() -> None:
    """Print each run as it ends, and a table for each task."""
    given = parse()
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "lightning"))
    print(f"{versions}, Python {platform.python_version()}, {torch.get_num_threads()} thread(s)", flush=True)
    with tempfile.TemporaryDirectory() as folder, only_warnings():
        table = Path(folder, "cells.csv")
        counts = write_table(given.data, table)
        for split, rows in counts.items():
            having = [sum(count > 0 for count in column) for column in zip(*rows, strict=True)]
            print(split, len(rows), "photos, of which have", dict(zip(CELLS, having, strict=True)))
        for task in given.tasks:
            runs: dict[str, list[dict[str, Any]]] = {start: [] for start in STARTS}
            for start in given.starts:
                for seed in given.seeds:
                    runs[start].append(run(task, start, seed, table, given))
                    print(f"{task}, {start}, seed {seed}: {runs[start][-1]['seconds']:.0f} s", flush=True)
            show(task, {start: [done["scores"] for done in runs[start]] for start in STARTS}, constant(task, counts))


if __name__ == "__main__":
    main()
