"""Fine-tune on ants and bees by the command line, several presets by several seeds, and print the table.

python tests/benchmarks/ants_bees.py HYMENOPTERA_DATA WEIGHTS --backbone squeezenet1_0 --presets linear_probe full

HYMENOPTERA_DATA is the folder of the PyTorch tutorial on transfer learning (train/ and val/, 244 and 153 photos);
WEIGHTS is a weights name or a file. What counts is the validation accuracy after the last epoch, not the best one.
"""

import argparse
import csv
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def command(arguments: argparse.Namespace, preset: str, seed: int) -> list[str]:
    """Give the words of one run."""
    return [
        "fit",
        f"--data.root={arguments.data}",
        f"--model.backbone={arguments.backbone}",
        f"--model.weights={arguments.weights}",
        f"--seed_everything={seed}",
        f"--data.seed={seed}",
        "--trainer.callbacks+=FinetuningSchedule",
        f"--trainer.callbacks.phases={preset}",
        "--trainer.enable_progress_bar=false",
        *arguments.extra,
    ]


def last_accuracy(log: Path) -> float:
    """Read the validation accuracy after the last epoch from a metrics.csv."""
    with log.open(newline="") as file:
        return [float(row["val_acc"]) for row in csv.DictReader(file) if row.get("val_acc")][-1]


def run(words: list[str]) -> float:
    """Run one command in a folder of its own and give its last accuracy."""
    with tempfile.TemporaryDirectory() as folder:
        program = [sys.executable, "-c", "import sys; from lit_transfer.cli import main; sys.exit(main())"]
        subprocess.run([*program, *words], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        return last_accuracy(Path(folder, "runs/version_0/metrics.csv"))


def main() -> None:
    """Print the first command of each preset, its accuracy for each seed, their mean and their spread."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights")
    parser.add_argument("--backbone", default="squeezenet1_0")
    parser.add_argument("--presets", nargs="+", default=["linear_probe", "full"])
    parser.add_argument("--seeds", type=int, default=5)
    arguments, arguments.extra = parser.parse_known_args()
    arguments.data = arguments.data.resolve()
    if Path(arguments.weights).exists():
        arguments.weights = str(Path(arguments.weights).resolve())
    for preset in arguments.presets:
        print("lit-transfer", shlex.join(command(arguments, preset, 0)), flush=True)
        start = time.perf_counter()
        scores = [run(command(arguments, preset, seed)) for seed in range(arguments.seeds)]
        each = " ".join(f"{score:.3f}" for score in scores)
        seconds = (time.perf_counter() - start) / len(scores)
        print(
            f"| {preset} | {statistics.mean(scores):.3f} | {min(scores):.3f} to {max(scores):.3f} | {each} "
            f"| {seconds:.0f} s |",
            flush=True,
        )


if __name__ == "__main__":
    main()
