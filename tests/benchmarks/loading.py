"""Time and memory of loading vit_l_16 out of a 3.5 GB training checkpoint, by several ways; `cat` is the floor.

    python tests/benchmarks/loading.py --folder /somewhere/with/15/GB [--repeat 3] [METHOD ...]

Each method runs in a process of its own, warm (the file is in the page cache), on two threads. "over" is the largest
resident memory beyond that of the built model and the imports; for a method that builds the model itself, beyond the
imports. Linux only: it reads /proc.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import torchvision
from torch import nn


class Wrap(nn.Module):
    """What a LightningModule is to a state dict: one more prefix."""

    def __init__(self) -> None:
        super().__init__()
        self.model = torchvision.models.vit_l_16()


def make(folder: Path) -> None:
    """Write the checkpoints that are not there yet: weights and two moments, as Lightning and as others save them."""
    if (folder / "done").exists():
        return
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    lit = Wrap()
    optimizer = torch.optim.AdamW(lit.parameters())
    state = optimizer.state_dict()
    state["state"] = {
        i: {"step": torch.tensor(1.0), "exp_avg": torch.randn_like(p), "exp_avg_sq": torch.rand_like(p)}
        for i, p in enumerate(lit.parameters())
    }
    lightning = {"epoch": 1, "global_step": 10, "pytorch-lightning_version": "2.6.6", "loops": {}, "callbacks": {}}
    torch.save(
        {**lightning, "state_dict": lit.state_dict(), "optimizer_states": [state], "lr_schedulers": []},
        folder / "train.ckpt",
    )
    plain = {"epoch": 1, "state_dict": lit.model.state_dict(), "optimizer": state}
    torch.save(plain, folder / "train_plain.pth")
    torch.save(plain, folder / "train_legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(lit.model.state_dict(), folder / "weights.pth")
    save_file(lit.model.state_dict(), folder / "weights.safetensors")
    (folder / "done").touch()


def ours(folder: Path) -> tuple[Callable[[], nn.Module], Callable[[Any], Any]]:
    from lit_transfer.weights import load_weights

    return Wrap, lambda model: load_weights(model, folder / "train.ckpt")


def ours_plain(folder: Path) -> tuple[Callable[[], nn.Module], Callable[[Any], Any]]:
    from lit_transfer.weights import load_weights

    return Wrap, lambda model: load_weights(model, folder / "train_plain.pth")


def ours_legacy(folder: Path) -> tuple[Callable[[], nn.Module], Callable[[Any], Any]]:
    from lit_transfer.weights import load_weights

    return torchvision.models.vit_l_16, lambda model: load_weights(model, folder / "train_legacy.pth")


def ours_safetensors(folder: Path) -> tuple[Callable[[], nn.Module], Callable[[Any], Any]]:
    from lit_transfer.weights import load_weights

    return torchvision.models.vit_l_16, lambda model: load_weights(model, folder / "weights.safetensors")


def ours_inspect(folder: Path) -> tuple[Callable[[], nn.Module], Callable[[Any], Any]]:
    from lit_transfer.weights import describe, open_checkpoint

    return lambda: nn.Linear(1, 1), lambda _: describe(open_checkpoint(folder / "train.ckpt"))


def torch_load(folder: Path) -> tuple[Callable[[], nn.Module], Callable[[Any], Any]]:
    return Wrap, lambda model: model.load_state_dict(
        torch.load(folder / "train.ckpt", map_location="cpu")["state_dict"]
    )


def torch_legacy(folder: Path) -> tuple[Callable[[], nn.Module], Callable[[Any], Any]]:
    path = folder / "train_legacy.pth"
    return torchvision.models.vit_l_16, lambda model: model.load_state_dict(
        torch.load(path, map_location="cpu")["state_dict"]
    )


def lightning(folder: Path) -> tuple[Callable[[], nn.Module], Callable[[Any], Any]]:
    import lightning as pl

    class Lit(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = torchvision.models.vit_l_16()

    return lambda: nn.Linear(1, 1), lambda _: Lit.load_from_checkpoint(folder / "train.ckpt", map_location="cpu")


def timm(folder: Path) -> tuple[Callable[[], nn.Module], Callable[[Any], Any]]:
    from timm.models import load_checkpoint

    return torchvision.models.vit_l_16, lambda model: load_checkpoint(model, str(folder / "train_plain.pth"))


def safetensors(folder: Path) -> tuple[Callable[[], nn.Module], Callable[[Any], Any]]:
    from safetensors.torch import load_file

    path = folder / "weights.safetensors"
    return torchvision.models.vit_l_16, lambda model: model.load_state_dict(load_file(path))


METHODS = {
    method.__name__: method
    for method in (
        ours,
        ours_plain,
        ours_legacy,
        ours_safetensors,
        ours_inspect,
        safetensors,
        torch_load,
        torch_legacy,
        lightning,
        timm,
    )
}


def resident(kind: Literal["VmRSS", "VmHWM"]) -> float:
    """Resident memory of this process in MiB, now or at its highest (`ru_maxrss` would begin at the parent's size)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{kind}:"))


def measure(name: str, folder: Path) -> dict[str, float]:
    """Build, load, and touch every page; in this process."""
    torch.set_num_threads(2)
    build, load = METHODS[name](folder)
    model = build()
    before = resident("VmRSS")
    start = time.perf_counter()
    result = load(model)
    seconds = time.perf_counter() - start
    loaded = result if isinstance(result, nn.Module) else model
    with torch.no_grad():
        checked = sum(p.view(-1)[::1024].sum().item() for p in loaded.parameters())
    return {"seconds": seconds, "over": resident("VmHWM") - before, "checked": checked}


def floor(folder: Path) -> float:
    """Seconds of `cat` over the 1.2 GB of weights alone."""
    start = time.perf_counter()
    subprocess.run(f"cat {folder / 'weights.pth'} > /dev/null", shell=True, check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=list(METHODS))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--one", action="store_true", help="measure one method in this process and print JSON")
    options = parser.parse_args()
    if options.one:
        with contextlib.redirect_stdout(sys.stderr):
            result = measure(options.methods[0], options.folder)
        print(json.dumps(result))
        return
    make(options.folder)
    floor(options.folder)
    base = statistics.median(floor(options.folder) for _ in range(5))
    print(f"{'cat of the weights':<18} {base:7.3f} s")
    for name in options.methods:
        command = [sys.executable, __file__, name, "--folder", str(options.folder), "--one"]
        runs = [
            json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            for _ in range(options.repeat)
        ]
        seconds = statistics.median(run["seconds"] for run in runs)
        over = statistics.median(run["over"] for run in runs)
        print(f"{name:<18} {seconds:7.3f} s  {seconds / base:6.1f} times  {over:7.0f} MiB over", flush=True)


if __name__ == "__main__":
    main()
