"""lit_transfer beside a plain PyTorch loop, Lightning's BackboneFinetuning and fastai: one run, one table.

python tests/benchmarks/peers HYMENOPTERA_DATA --backbone squeezenet1_0 --weights WEIGHTS

HYMENOPTERA_DATA is the folder of the PyTorch tutorial on transfer learning (train/ and val/, 244 and 153 photos);
WEIGHTS is a weights name or a file, random weights without. fastai must be installed beside this project.

  probe    a linear probe of 20 epochs, from the call to its end, the photos being decoded; "one pass" decodes each
           photo once and runs the backbone eagerly; then ten more heads from stored features
  step     one step of full fine-tuning on a batch in memory: medians of 20 steps, the tools taking turns
  predict  probabilities for all photos of both folders
  start    from the command to the end of the first training step, batches of four photos

Each measure but `step` is a process of its own, the tools taking turns round after round; medians are shown. Of the
probe, the peers that go through all photos in every epoch run in the first round only: it takes them minutes. Imports
and the building of the model are not counted but in `start`. AdamW, batches of 32, two workers, float32, CPU.
`cpu` is seconds of the processor, workers included, which other work on the machine changes less than the seconds of
the clock; `memory` is the peak of the anonymous memory of a measure's processes in MiB, sampled twice a second.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import first_step
import predict
import probe
import steps
import torch

CASES = {"probe": probe.TOOLS, "predict": predict.TOOLS}
Row = dict[str, Any]


def anonymous(pid: int) -> int:
    """Return the anonymous memory of a process and its descendants in MiB, shared pages divided among sharers."""
    total = 0
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon")) // 1024
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(anonymous(int(child)) for child in (task / "children").read_text().split())
    except OSError:  # it is gone
        pass
    return total


def run(command: list[str]) -> tuple[str, float, int]:
    """Run a command: what it printed, its seconds, its peak memory."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    while True:
        peak = max(peak, anonymous(process.pid))
        try:
            out, err = process.communicate(timeout=0.5)
            break
        except subprocess.TimeoutExpired:
            continue
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{err}")
    return out, time.perf_counter() - start, peak


def in_a_process(arguments: argparse.Namespace, case: str, tool: str) -> Row:
    """Measure one tool once."""
    command = [sys.executable, str(Path(__file__).parent), str(arguments.data), "--backbone", arguments.backbone]
    command += ["--weights", arguments.weights] if arguments.weights else []
    out, _, peak = run([*command, "--batch", str(arguments.batch), "--case", case, "--tool", tool])
    row: Row = json.loads(out.splitlines()[-1])
    return row if case == "step" else {**row, "memory": peak}


def table(title: str, rows: dict[str, Row], *, base: str) -> None:
    """Print seconds, ratios to one of the tools, and what else is known of each."""
    more = [name for name in ("cpu", "accuracy", "memory") if any(name in row for row in rows.values())]
    print(f"\n| {' | '.join([title, 'seconds', f'over {base}', *more])} |\n|{'---|' * (3 + len(more))}", flush=True)
    for tool, row in rows.items():
        known = {
            "cpu": f"{row.get('cpu', 0):.1f}",
            "accuracy": f"{row.get('accuracy', 0):.3f}",
            "memory": f"{row.get('memory', 0):.0f}",
        }
        cells = [tool, f"{row['seconds']:.3f}", f"{row['seconds'] / rows[base]['seconds']:.2f}"]
        print(f"| {' | '.join(cells + [known.get(name, '-') for name in more])} |")


def medians(found: dict[str, list[Row]]) -> dict[str, Row]:
    """Give the median of each number of each tool."""
    return {
        tool: {
            name: statistics.median(row[name] for row in rows)
            for name, value in rows[0].items()
            if isinstance(value, int | float)
        }
        for tool, rows in found.items()
    }


def in_turns(arguments: argparse.Namespace, case: str) -> None:
    """Measure all tools of a case and print their table."""
    tools = [tool for tool in CASES[case] if not arguments.tools or tool in arguments.tools]
    found: dict[str, list[Row]] = {tool: [] for tool in tools}
    for number in range(arguments.rounds):
        for tool in tools:
            if number and case == "probe" and tool in probe.ONCE:
                continue
            found[tool].append(in_a_process(arguments, case, tool))
            print(case, tool, found[tool][-1], file=sys.stderr, flush=True)
    rows = medians(found)
    table(f"{arguments.backbone}: {case}", rows, base="one pass" if case == "probe" else "PyTorch by hand")
    if others := found.get("lit_transfer", [{}])[0].get("others"):
        print(f"ten more heads: {rows['lit_transfer']['ten']:.1f} s, accuracy {min(others):.3f} to {max(others):.3f}")


def start(arguments: argparse.Namespace) -> None:
    """Measure how long programs take to their first step, when the bytecode of all that they import is there."""
    found: dict[str, list[Row]] = {tool: [] for tool in first_step.TOOLS}
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    for number in range(2 * arguments.rounds + 1):
        for tool in found:
            before = os.times()
            _, seconds, peak = run(first_step.command(tool, arguments.data, arguments.backbone))
            after = os.times()
            cpu = sum(after[2:4]) - sum(before[2:4])  # of processes that have ended
            if number:
                found[tool].append({"seconds": seconds, "cpu": cpu, "memory": peak})
    rows = medians(found)
    for tool, beside in first_step.OVER.items():
        table(f"{arguments.backbone}: start", {name: rows[name] for name in (tool, beside)}, base=beside)
        for measure, of in (("seconds", "the clock"), ("cpu", "the processor")):
            more = [ours[measure] - by_hand[measure] for ours, by_hand in zip(found[tool], found[beside], strict=True)]
            print(f"median of the differences in each round, seconds of {of}: {statistics.median(more):+.2f}")


def step(arguments: argparse.Namespace) -> None:
    """Measure steps in one process that takes turns."""
    found: dict[str, list[float]] = in_a_process(arguments, "step", "all")
    rows = {tool: {"seconds": statistics.median(seconds)} for tool, seconds in found.items()}
    ratios = [ours / by_hand for ours, by_hand in zip(*list(found.values())[:2], strict=True)]
    table(f"{arguments.backbone}: step, batch of {arguments.batch}", rows, base="by hand, channels_last")
    print(f"median of the 20 ratios of neighbouring steps to those by hand: {statistics.median(ratios):.3f}")


def main() -> None:
    """Measure what was asked for and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--backbone", default="squeezenet1_0")
    parser.add_argument("--weights", help="random if not given")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16, help="of the steps")
    parser.add_argument("--cases", nargs="+", choices=["probe", "step", "predict", "start"])
    parser.add_argument("--tools", nargs="+", help="of probe and predict; all if not given")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--tool", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        warnings.simplefilter("ignore")
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        found = (
            steps.measure(arguments) if arguments.case == "step" else CASES[arguments.case][arguments.tool](arguments)
        )
        print(json.dumps(found))
        return
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "lightning", "fastai")]
    cores = f"{torch.get_num_threads()} threads, {platform.machine()}"
    print(f"{datetime.date.today()}, {', '.join(versions)}, {cores}")
    for case in arguments.cases or ["probe", "step", "predict", "start"]:
        {"step": step, "start": start}.get(case, lambda given, case=case: in_turns(given, case))(arguments)


if __name__ == "__main__":
    main()
