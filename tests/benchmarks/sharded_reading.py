"""How much of a large sharded checkpoint is read for one part of it, by one process and by several that share the part.

python tests/benchmarks/sharded_reading.py

Writes safetensors shards with an index: a `vision_tower` beside a `language_model` many times its size, whose shards
are sparse files, which take no room on the disk and read as zeros. Only the tower is built, on the meta device, and
sharded by fully_shard where there are several processes; `load_weights(tower, INDEX)` is all that is said. Bytes are
those that the system counts for each process (`rchar` in /proc/self/io), in the second of two loads, since the first
one imports modules. The values are compared with those that were written.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lit_transfer import load_weights

LAYERS, BLOCKS_IN_A_SHARD = 4, 8


def tower(side: int) -> nn.Module:
    """The part that is wanted: square linear layers."""
    return nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(side, side, bias=False) for _ in range(LAYERS))})


def rows(number: int, side: int) -> Tensor:
    """What each row of a layer is filled with."""
    return number * side + torch.arange(side, dtype=torch.float32)


def write(folder: Path, side: int, times: int) -> Path:
    """Write the shards of a checkpoint `times` the size of the tower, and their index."""
    shards: dict[str, dict[str, tuple[int, ...]]] = {}
    for block in range(times - 1):
        shard = f"model-{block // BLOCKS_IN_A_SHARD + 2:05}.safetensors"
        names = {f"language_model.blocks.{block}.mlp{i}.weight": (side, side) for i in range(LAYERS)}
        shards.setdefault(shard, {}).update(names)
    for shard, shapes in shards.items():
        write_sparse(folder / shard, shapes)
    first = {f"vision_tower.layers.{i}.weight": rows(i, side)[:, None].repeat(1, side) for i in range(LAYERS)}
    save_file(first, folder / "model-00001.safetensors")
    where = dict.fromkeys(first, "model-00001.safetensors")
    where |= {name: shard for shard, names in shards.items() for name in names}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return index


def write_sparse(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Write a safetensors file of zeros: its header, and a hole for the rest."""
    header, end = dict[str, Any](), 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * shape[0] * shape[1]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def worker(index: Path, side: int, rank: int, world: int, store: Path) -> None:
    """Load the tower in one of the processes; print what it took."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    for _ in range(2):
        with torch.device("meta"):
            model = tower(side)
        if world > 1:
            mesh = init_device_mesh("cpu", (world,))
            for layer in model["layers"].children():  # type: ignore[operator, index]  # a ModuleDict
                fully_shard(layer, mesh=mesh)
        before, start = characters(), time.perf_counter()
        load_weights(model, index)
        took = {"bytes": characters() - before, "seconds": time.perf_counter() - start}
    for number, weight in enumerate(model.parameters()):
        local: Tensor = weight.to_local() if world > 1 else weight.detach()  # type: ignore[attr-defined]  # a DTensor
        expected = rows(number, side).chunk(world)[rank]
        if not torch.equal(local, expected[:, None].expand_as(local)):
            raise AssertionError(f"layer {number} of process {rank} is not what was written.")
    dist.destroy_process_group()
    print(json.dumps(took))


def characters() -> int:
    """Bytes that this process has read so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


def measure(index: Path, side: int, world: int) -> list[dict[str, float]]:
    """Let so many processes load at once."""
    with tempfile.TemporaryDirectory() as folder:
        given = [index, "--side", side, "--world", world, "--store", Path(folder) / "store"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        running = [
            subprocess.Popen(
                [sys.executable, __file__, *map(str, given), "--rank", str(rank)],
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for rank in range(world)
        ]
        answers = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError("a process failed; it said why above.")
    return [json.loads(answer.splitlines()[-1]) for answer in answers]


def main() -> None:
    """Measure with one process and with more, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", nargs="?", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--side", type=int, default=4096, help="of the tower's layers; 4 of them are the tower")
    parser.add_argument("--times", type=int, default=46, help="size of the checkpoint over that of the tower")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    for name, kind in (("--rank", int), ("--world", int), ("--store", Path)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank is not None:
        worker(given.index, given.side, given.rank, given.world, given.store)
        return
    wanted = 4 * LAYERS * given.side**2
    print(f"one part of {wanted / 1e6:,.0f} MB out of a checkpoint of {wanted * given.times / 1e9:,.2f} GB")
    print("\n| processes | bytes read by all | over the part | by one at most | seconds |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        index = write(Path(folder), given.side, given.times)
        for world in given.processes:
            found = measure(index, given.side, world)
            each = [int(row["bytes"]) for row in found]
            slowest = max(row["seconds"] for row in found)
            print(f"| {world} | {sum(each):,} | {sum(each) / wanted:.4f} | {max(each):,} | {slowest:.2f} |")


if __name__ == "__main__":
    main()
