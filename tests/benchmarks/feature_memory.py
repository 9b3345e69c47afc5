"""Peak anonymous memory of a linear probe on cached features, beside that of a plain inference pass over the same data.

    python tests/benchmarks/feature_memory.py [--samples 50000] [--side 32] [--backbone resnet18] [--workers 2]

Each runs in a process of its own on two threads. The memory is `Pss_Anon` of the process and all its descendants,
sampled 10 times a second; pages that workers share with it count once, those of mapped files not at all. The samples
are made from their index. The plain pass knows no Lightning; the probe fills the cache and trains for three epochs. The
exit code is 1 if the probe takes more than 200 MiB more. Linux only: it reads /proc.
"""

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

ALLOWED, BATCH, VALIDATED = 200, 64, 2_000  # MiB, samples, samples


class Synthetic(Dataset[Any]):
    """Noise with a class, the same for an index each time."""

    def __init__(self, samples: int, side: int, first: int = 0) -> None:
        self.samples, self.side, self.first = samples, side, first

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        generator = torch.Generator().manual_seed(self.first + index)
        return torch.randn(3, self.side, self.side, generator=generator), index % 10


def plain(args: argparse.Namespace) -> None:
    from lit_transfer.backbones import create_backbone

    backbone = create_backbone(args.backbone, weights=None).eval()
    with torch.inference_mode():
        for images, _ in DataLoader(Synthetic(args.samples, args.side), BATCH, num_workers=args.workers):
            backbone(images)


def probe(args: argparse.Namespace) -> None:
    from lightning.pytorch import LightningModule, Trainer

    from lit_transfer.backbones import create_backbone
    from lit_transfer.callbacks import FeatureCaching, FinetuningSchedule

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = create_backbone(args.backbone, weights=None)
            self.head = torch.nn.Linear(self.backbone.num_features, 10)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), 1e-3)

    loaders = [
        DataLoader(Synthetic(args.samples, args.side), BATCH, shuffle=True, num_workers=args.workers),
        DataLoader(Synthetic(VALIDATED, args.side, 10**9), BATCH, num_workers=args.workers),
    ]
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=3,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[FinetuningSchedule("linear_probe"), FeatureCaching(folder=folder, fast=args.fast)],
        )
        trainer.fit(Module(), *loaders)


def family(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += map(int, task.read_text().split())
    return found


def anonymous(pid: int) -> int:
    """Return the anonymous memory of a process in KiB; 0 if it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss_Anon:"):
                return int(line.split()[1])
    return 0


def peak(command: list[str]) -> tuple[float, float]:
    """Run a command; its largest anonymous memory in MiB, and its seconds."""
    start, largest = time.monotonic(), 0
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            largest = max(largest, sum(map(anonymous, family(process.pid))))
            time.sleep(0.1)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed.")
    return largest / 1024, time.monotonic() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="?", choices=["plain", "probe"], help=argparse.SUPPRESS)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--exact", dest="fast", action="store_false", help="compute features without a working copy")
    args = parser.parse_args()
    if args.case:
        warnings.simplefilter("ignore")
        torch.set_num_threads(2)
        {"plain": plain, "probe": probe}[args.case](args)
        return 0
    largest = {}
    for case in ("plain", "probe"):
        largest[case], seconds = peak([sys.executable, __file__, case, *sys.argv[1:]])
        print(f"{case:6} {largest[case]:8.1f} MiB {seconds:8.1f} s", flush=True)
    more = largest["probe"] - largest["plain"]
    print(f"probe - plain: {more:+.1f} MiB, allowed {ALLOWED}; {args.samples} samples, {args.backbone}")
    return int(more > ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
