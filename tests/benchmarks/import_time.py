"""How long `import lit_transfer` takes beside `import torch`: python tests/benchmarks/import_time.py [ROUNDS]

Each statement runs in a fresh interpreter, the statements in turn, so that a busy moment hits all of them; the medians
are compared.
"""

import statistics
import subprocess
import sys
import time

STATEMENTS = {
    "import torch": "import torch",
    "import lit_transfer": "import lit_transfer",
    "its rooms that need torch alone": "from lit_transfer import freeze, load_weights, param_groups, trace_stages",
}


def seconds(statement: str) -> float:
    """Time one fresh interpreter."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


def main(rounds: int) -> None:
    """Print the medians and their ratio to torch's."""
    times: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for _ in range(rounds + 1):
        for name, statement in STATEMENTS.items():
            times[name].append(seconds(statement))
    floor = statistics.median(times["import torch"][1:])
    for name, measured in times.items():
        median = statistics.median(measured[1:])  # the first round warms the file cache
        print(f"{name:34} {median:6.3f} s  {median / floor:5.2f} times torch")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
