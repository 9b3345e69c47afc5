"""The strategy rule of the tutorials, tried on digits: python tests/benchmarks/situations.py

The rule asks how large the new data set is and how similar to the one that the network learned from, and recommends
for little and similar data a linear classifier on the features, for much and similar data fine-tuning everything, for
little and different data training from an early stage on, and for much and different data fine-tuning everything or
starting from scratch (Yosinski et al., arXiv:1411.1792; notes of Stanford's CS231n on transfer learning).

A SqueezeNet 1.1 that has learned the digits 0 to 4 learns the digits 5 to 9: upright (similar), or as negatives that
are turned by a quarter (different); from 10 examples of each (small) or all of about 108 (large). Each number is the
accuracy on about 180 test digits after the last epoch, the mean over the seeds and the lowest to the highest; the seed
draws the split, the examples, the head and the order. What the rule recommends is in bold.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from PIL import Image, ImageOps

from lit_transfer.callbacks import FinetuningSchedule
from lit_transfer.cli import demo
from lit_transfer.cli._noise import only_warnings
from lit_transfer.data import DigitsData

SEEDS = 5
CLASSES = [5, 6, 7, 8, 9]
PRESETS: dict[str, Any] = {
    "linear_probe": "linear_probe",
    "freeze_first_k, k=2": {"preset": "freeze_first_k", "k": 2},
    "probe_then_finetune": "probe_then_finetune",
    "gradual": "gradual",
    "full": "full",
    "from_scratch": "from_scratch",
}
SIZES: dict[str, dict[str, Any]] = {  # the same number of optimizer steps, about
    "small": {"per_class": 10, "batch_size": 10, "epochs": 20},
    "large": {"per_class": None, "batch_size": 32, "epochs": 6},
}
RULE = {
    ("small", "similar"): {"linear_probe"},
    ("large", "similar"): {"full"},
    ("small", "different"): {"freeze_first_k, k=2"},
    ("large", "different"): {"full", "from_scratch"},
}


class TurnedNegatives(DigitsData):
    """The digits as another camera and another hand would give them: turned by a quarter, dark on light."""

    def reader(self, mode: str) -> Callable[[Any], Image.Image]:
        """Make what gives a digit as an image."""
        read = super().reader(mode)
        return lambda index: ImageOps.invert(read(index).transpose(Image.Transpose.ROTATE_90))


def accuracy(size: str, kind: str, preset: str, checkpoint: Path, seed: int) -> float:
    """Train once and give the accuracy on the test digits."""
    seed_everything(seed, verbose=False)
    options = dict(SIZES[size])
    trainer = demo.quiet_trainer(options.pop("epochs"), FinetuningSchedule(PRESETS[preset]))
    data = {"similar": DigitsData, "different": TurnedNegatives}[kind](CLASSES, **options, seed=seed)
    module = demo.build("from scratch" if preset == "from_scratch" else "fine-tuning", checkpoint)
    trainer.fit(module, data)
    return trainer.test(module, data, verbose=False)[0]["test_acc"]


def cell(values: list[float], recommended: bool) -> str:
    """Write a mean and its spread."""
    mean = f"{statistics.mean(values):.3f}"
    return f"{f'**{mean}**' if recommended else mean} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    """Print one row for each preset, one column for each situation."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, only_warnings():
        checkpoint, learned = demo.teach(Path(folder, "digits_0_to_4.pth.tar"))
        print(f"accuracy of the source network on its own validation digits: {learned:.3f}; {SEEDS} seeds\n")
        print("| preset |", " | ".join(f"{size} and {kind}" for size, kind in RULE), "|")
        print("|---|" + "---|" * len(RULE))
        for preset in PRESETS:
            cells = []
            for (size, kind), recommended in RULE.items():
                values = [accuracy(size, kind, preset, checkpoint, seed) for seed in range(SEEDS)]
                cells.append(cell(values, preset in recommended))
            print(f"| `{preset}` |", " | ".join(cells), "|", flush=True)
    print(f"\n{time.perf_counter() - start:.0f} seconds")


if __name__ == "__main__":
    main()
