"""Fine-tuning on the demo's digits at several rates of head and backbone: python tests/benchmarks/default_rates.py

A network that has learned the digits 0 to 4 learns 5 to 9 from ten examples of each, as in `lit-transfer demo`; each
number is the test accuracy, the mean over the seeds. For ants and bees give the rates to ants_bees.py.
"""

import statistics
import tempfile
from pathlib import Path

import torch
from lightning.pytorch import seed_everything

from lit_transfer.cli import demo
from lit_transfer.cli._noise import only_warnings
from lit_transfer.data import DigitsData
from lit_transfer.modules import ImageClassifier

RATES = (1e-3, 3e-3, 1e-2)
FACTORS = (0.03, 0.1, 0.3)
SEEDS = 3


def accuracy(checkpoint: Path, rate: float, factor: float, seed: int) -> float:
    """Fine-tune once and give the accuracy on the test digits."""
    seed_everything(seed, verbose=False)
    module = ImageClassifier(
        **demo.MODEL,
        weights=str(checkpoint),
        backbone_lr_factor=factor,
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=rate, weight_decay=0.05),
    )
    trainer, data = demo.quiet_trainer(demo.TARGET_EPOCHS), DigitsData(**demo.TARGET, seed=seed)
    trainer.fit(module, data)
    return trainer.test(module, data, verbose=False)[0]["test_acc"]


def main() -> None:
    """Print one row for each rate of the head, one column for each factor of the backbone."""
    with tempfile.TemporaryDirectory() as folder, only_warnings():
        checkpoint, _ = demo.teach(Path(folder, "digits_0_to_4.pth.tar"))
        print("| head's rate |", " | ".join(f"backbone x {factor}" for factor in FACTORS), "|")
        print("|---|" + "---|" * len(FACTORS))
        for rate in RATES:
            means = [statistics.mean(accuracy(checkpoint, rate, f, seed) for seed in range(SEEDS)) for f in FACTORS]
            print(f"| {rate:g} |", " | ".join(f"{mean:.3f}" for mean in means), "|", flush=True)


if __name__ == "__main__":
    main()
