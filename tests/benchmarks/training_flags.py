"""A step of full fine-tuning under each flag that may make it faster: memory layout, bfloat16, compiling.

python tests/benchmarks/training_flags.py resnet18 squeezenet1_0 mobilenet_v3_large [--compile]

Random images in memory, batches of 16 of 3x224x224, AdamW, random weights; a GPU is used where there is one. The
settings take turns; shown are the medians, and how long the first step took.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F
from torchvision.models import get_model

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass
class Setting:
    """One way to train, and what it took."""

    name: str
    layout: torch.memory_format = torch.contiguous_format
    bfloat16: bool = False
    compiled: bool = False
    seconds: list[float] = field(default_factory=list)

    def build(self, backbone: str) -> None:
        """Make the network and its optimizer."""
        torch.manual_seed(0)
        self.net = get_model(backbone, num_classes=2).to(DEVICE).to(memory_format=self.layout).train()
        if self.compiled:
            self.net.compile()
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-4)

    def step(self, images: torch.Tensor, targets: torch.Tensor) -> None:
        """Take one step, and note its time."""
        images = images.contiguous(memory_format=self.layout)
        start = time.perf_counter()
        self.optimizer.zero_grad()
        with torch.autocast(DEVICE, torch.bfloat16, enabled=self.bfloat16):
            loss = F.cross_entropy(self.net(images), targets)
        loss.backward()
        self.optimizer.step()
        loss.item()  # waits for the device
        self.seconds.append(time.perf_counter() - start)


def main() -> None:
    """Measure and print a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbones", nargs="+")
    parser.add_argument("--compile", action="store_true", help="measure compiled networks too")
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    images, targets = torch.randn(16, 3, 224, 224, device=DEVICE), torch.arange(16, device=DEVICE) % 2
    for backbone in arguments.backbones:
        last = torch.channels_last
        settings = [Setting("as built"), Setting("channels_last", last), Setting("channels_last, bf16", last, True)]
        if arguments.compile:
            settings += [Setting("channels_last, compiled", last, compiled=True)]
        for setting in settings:
            setting.build(backbone)
        for _ in range(arguments.steps + 1):
            for setting in settings:
                setting.step(images, targets)
        print(f"\n| {backbone}, {DEVICE} | first step, s | a step, s | over as built |\n|---|---|---|---|")
        base = statistics.median(settings[0].seconds[1:])
        for setting in settings:
            median = statistics.median(setting.seconds[1:])
            print(f"| {setting.name} | {setting.seconds[0]:.2f} | {median:.3f} | {median / base:.2f} |", flush=True)


if __name__ == "__main__":
    main()
