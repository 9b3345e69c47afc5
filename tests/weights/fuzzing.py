"""A mutation fuzz of every format that weights are read from.

python tests/weights/fuzzing.py --cases 20000 --seed 1

Small files are damaged at random, described, and loaded into a model. Each must load whole, or raise
WeightsError and leave the model as it was, within 2 s of the processor and 1 GiB of memory; nothing may be executed or
connected to, nor written but temporary files, which must be gone. Case N of a seed is the same each time: `--only N`
runs it alone. The exit status is 1 if something was found.
"""

import argparse
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from fuzz_files import Files, base_files
from fuzz_mutations import damaged
from hostile_files import ran_out_of_memory
from small_network import equal, network, values

from lit_transfer.weights import WeightsError, describe, load_weights, open_checkpoint

SECONDS, HANGS, EXTRA_BYTES = 2.0, 120, 2**30  # of the processor; of the clock; of memory beyond that of the start
EVENTS = {
    *("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn"),
    *("socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request", "ctypes.dlopen", "pickle.find_class"),
    *("os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.chown", "shutil.rmtree"),
}


class Watch:
    """Notes what this process does that reading has no business with; an audit hook, which cannot be taken off."""

    def __init__(self, room: Path) -> None:
        self.seen: list[str] = []
        self._room, self._on = str(room), False
        sys.addaudithook(self._note)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Look for as long as this lasts."""
        self.seen, self._on = [], True
        try:
            yield
        finally:
            self._on = False

    def _note(self, event: str, args: tuple[Any, ...]) -> None:
        if not self._on:
            return
        if event in EVENTS or (event == "exec" and not Path(args[0].co_filename).is_file()):
            self.seen.append(f"{event} {args!r}"[:200])
        # A number is a file that is open already.
        if event in ("open", "os.remove") and not isinstance(args[0], int) and not str(args[0]).startswith(self._room):
            writes = event == "os.remove" or bool((args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            if writes:
                self.seen.append(f"{event} {args!r}"[:200])


@dataclass
class Tally:
    """What became of the files of one format."""

    cases: int = 0
    loaded: int = 0
    slowest: float = 0.0
    found: list[str] = field(default_factory=list)


def judge(path: Path, watch: Watch, room: Path, tally: Tally) -> str:
    """Describe a file and load it, and return what was wrong with that; "" if nothing was."""
    model = network(width=2)
    before = values(model)
    start = time.process_time()
    with watch.on():
        wrong = [*_attempt(lambda: describe(open_checkpoint(path)))[1]]
        loaded, more = _attempt(lambda: load_weights(model, path))
    wrong += more
    seconds = time.process_time() - start
    tally.cases += 1
    tally.loaded += loaded
    tally.slowest = max(tally.slowest, seconds)
    if seconds > SECONDS:
        wrong.append(f"took {seconds:.1f} s")
    if not loaded and not equal(values(model), before):
        wrong.append("the model is half loaded")
    wrong += watch.seen
    if left := list(room.iterdir()):
        wrong.append(f"left {left}")
        for file in left:
            file.unlink()
    return "\n".join(wrong)


def _attempt(action: Callable[[], object]) -> tuple[bool, list[str]]:
    """Do something: whether it ended, and what was wrong with how it did not."""
    try:
        action()
    except WeightsError as error:
        return False, [f"out of memory: {error}"] if ran_out_of_memory(error) else []
    except BaseException:  # KeyboardInterrupt and the like are not for a file to raise
        return False, [traceback.format_exc(limit=-4)]
    return True, []


def write(files: Files, path: Path) -> Path:
    """Write a file, or a folder of files."""
    for name, data in files.items():
        path.mkdir(exist_ok=True)
        (path / (name or "f")).write_bytes(data)
    return path if len(files) > 1 else path / "f"


def case(seed: int, number: int, bases: dict[str, Files]) -> tuple[str, Files]:
    """Make the damaged files of a case: their format and themselves."""
    random = Random(f"{seed} {number}")
    kind = list(bases)[number % len(bases)]
    files = dict(bases[kind])
    tables = [name for name in files if name.endswith((".metadata", ".json"))]  # few beside many files of numbers
    chosen = random.choice(tables if tables and random.random() < 0.5 else list(files))
    others = [data for base in bases.values() for data in base.values()]
    files[chosen] = damaged(files[chosen], random, others)
    return kind, files


def limit_memory() -> None:
    """Allow so much more than is used now; where /proc does not tell, nothing is limited."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        used = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + EXTRA_BYTES,) * 2)


def fuzz(seed: int, numbers: range, folder: Path) -> dict[str, Tally]:
    """Run cases of a seed in an empty folder, and tell what was found as it is found."""
    for name in ("bases", "room", "case"):
        (folder / name).mkdir()
    room = tempfile.tempdir = folder / "room"
    watch, bases = Watch(room), base_files(folder / "bases")
    tallies = {kind: Tally() for kind in bases}
    for kind, files in bases.items():  # whole ones: they load, and what is imported late is imported now
        tally = Tally()
        wrong = judge(write(files, folder / "case" / kind), watch, room, tally)
        if not tally.loaded:
            raise RuntimeError(f"{kind}, undamaged, does not load:\n{wrong}")
    limit_memory()
    for number in numbers:
        kind, files = case(seed, number, bases)
        path = write(files, folder / "case" / "damaged")
        signal.alarm(HANGS)
        if wrong := judge(path, watch, room, tallies[kind]):
            tallies[kind].found.append(f"--seed {seed} --only {number} ({kind}): {wrong}")
            print(tallies[kind].found[-1], flush=True)
        signal.alarm(0)
        for file in (folder / "case" / "damaged").iterdir():
            file.unlink()
    if (folder / "bases" / "executed").exists():
        raise RuntimeError("the code in a file was executed")
    return tallies


def main() -> None:
    """Fuzz and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="number of the only case to run")
    arguments = parser.parse_args()
    warnings.simplefilter("error")
    numbers = range(arguments.cases) if arguments.only is None else range(arguments.only, arguments.only + 1)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tallies = fuzz(arguments.seed, numbers, Path(folder))
    print(f"{len(numbers)} cases of seed {arguments.seed} in {time.monotonic() - start:.0f} s")
    print("| format | cases | loaded | refused | slowest, ms | found |\n|---|---|---|---|---|---|")
    for kind, tally in tallies.items():
        row = (
            kind,
            tally.cases,
            tally.loaded,
            tally.cases - tally.loaded,
            round(1e3 * tally.slowest),
            len(tally.found),
        )
        print(f"| {' | '.join(map(str, row))} |")
    sys.exit(any(tally.found for tally in tallies.values()))


if __name__ == "__main__":
    main()
