"""Inference of a frozen backbone beside its working copies: folded and channels last, compiled, in bfloat16.

python tests/benchmarks/frozen_front.py resnet18 squeezenet1_0 mobilenet_v3_large [--compile]

Random images in memory, batches of 32 of 3x224x224, random weights; a GPU is used where there is one. The settings take
turns under inference mode; shown are medians, and the largest difference over the largest value of the plain features.
`FeatureCaching` fills its store with such a copy, and `fast=` chooses which.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from lit_transfer import create_backbone
from lit_transfer.features import Fast, apart, checked_copy, find_boundary

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Runs = dict[str, Callable[[Tensor], Tensor]]


def settings(name: str, images: Tensor, *, compiled: bool) -> Runs:
    """Build a backbone and its copies."""
    torch.manual_seed(0)
    backbone = create_backbone(name, weights=None).eval().requires_grad_(False).to(DEVICE)
    boundary = find_boundary(backbone)
    assert boundary is not None  # all of it is frozen
    runs: Runs = {"as built": backbone}
    ways: list[Fast] = [True, "bfloat16", *(["compile"] if compiled else [])]
    for way in ways:
        with torch.inference_mode():
            copied, told = checked_copy(backbone, boundary, images, backbone(images), fast=way)
        print(f"{name}, fast={way!r}: {told}", flush=True)
        if copied is not None:
            runs[f"fast={way!r}"] = copied
    return runs


def main() -> None:
    """Measure and print a table for each backbone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbones", nargs="+")
    parser.add_argument("--compile", action="store_true", help="measure compiled copies too")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    images = torch.randn(32, 3, 224, 224, device=DEVICE)
    for name in arguments.backbones:
        runs = settings(name, images, compiled=arguments.compile)
        with torch.inference_mode():
            plain = runs["as built"](images)
            seconds: dict[str, list[float]] = {way: [] for way in runs}
            for _ in range(arguments.rounds + 1):
                for way, run in runs.items():
                    start = time.perf_counter()
                    run(images).sum().item()  # waits for the device
                    seconds[way].append(time.perf_counter() - start)
            differences = {way: apart(run(images), plain) for way, run in runs.items()}
        base = statistics.median(seconds["as built"][1:])
        print(f"\n| {name}, {DEVICE} | ms an image | times faster | difference |\n|---|---|---|---|")
        for way, taken in seconds.items():
            median = statistics.median(taken[1:])
            print(f"| {way} | {1000 * median / 32:.2f} | {base / median:.2f} | {differences[way]:.1e} |", flush=True)


if __name__ == "__main__":
    main()
