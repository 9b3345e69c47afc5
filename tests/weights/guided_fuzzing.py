"""A coverage-guided fuzz of the readers, by atheris: `pip install atheris`.

python tests/weights/guided_fuzzing.py --kinds zip legacy "legacy tar" safetensors --seconds 900

Each kind of file, as the mutation fuzz has it, is damaged further wherever that reaches new code of the loader, in a
process of its own, for so many seconds, one after the other. Each file is held to what the mutation fuzz holds it to.
What is found is kept as a file in `--findings`, and the exit status is 1.
"""

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

KINDS = ("zip", "legacy", "legacy tar", "safetensors")


def fuzz(kind: str, seconds: int, findings: Path) -> None:
    """Fuzz one kind of file until the time is over; a finding ends the process."""
    import atheris

    with atheris.instrument_imports(include=["lit_transfer.weights"]):
        from fuzzing import Tally, Watch, base_files, damaged, judge, limit_memory

    folder = Path(tempfile.mkdtemp())
    for name in ("bases", "room", "case", "corpus"):
        (folder / name).mkdir()
    room = tempfile.tempdir = folder / "room"
    bases, watch, tally = base_files(folder / "bases"), Watch(room), Tally()
    others = [data for base in bases.values() for data in base.values()]
    (folder / "corpus" / "whole").write_bytes(bases[kind][""])
    path = folder / "case" / "f"

    def one(data: bytes) -> None:
        path.write_bytes(data)
        if wrong := judge(path, watch, room, tally):
            raise AssertionError(wrong)

    def mutate(data: bytes, longest: int, seed: int) -> bytes:
        """Half of the time inside what is packed again with right checksums, which no blind change gets past."""
        random = Random(seed)
        if data and random.random() < 0.5:
            with contextlib.suppress(Exception):  # what is damaged already may not be unpacked
                return damaged(data, random, others)[:longest]
        mutated: bytes = atheris.Mutate(data, longest)
        return mutated

    one(bases[kind][""])  # what is imported late is imported now
    limit_memory()
    options = [f"-max_total_time={seconds}", f"-artifact_prefix={findings}/{kind.replace(' ', '-')}-", "-max_len=65536"]
    options += ["-timeout=20", "-rss_limit_mb=0", "-print_final_stats=1", str(folder / "corpus")]
    atheris.Setup([sys.argv[0], *options], one, custom_mutator=mutate)
    atheris.Fuzz()


def main() -> None:
    """Fuzz each kind in turn and tell how it ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--seconds", type=int, default=900, help="for each kind")
    parser.add_argument("--findings", type=Path, default=Path("findings"))
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.findings.mkdir(exist_ok=True)
    if arguments.alone:
        fuzz(arguments.kinds[0], arguments.seconds, arguments.findings.resolve())
        return
    failed = []
    print("| kind | seconds | files | parts of the code reached | ended |\n|---|---|---|---|---|")
    for kind in arguments.kinds:
        command = [sys.executable, __file__, "--alone", "--kinds", kind, "--seconds", str(arguments.seconds)]
        start = time.monotonic()
        ran = subprocess.run(
            [*command, "--findings", str(arguments.findings)], check=False, capture_output=True, text=True
        )
        told = ran.stderr.splitlines()
        files = next((line.split()[-1] for line in told if line.startswith("stat::number_of_executed_units")), "?")
        reached = next((line.split("cov: ")[1].split()[0] for line in reversed(told) if "cov: " in line), "?")
        ended = "nothing found" if ran.returncode == 0 else "a finding"
        print(f"| {kind} | {time.monotonic() - start:.0f} | {files} | {reached} | {ended} |", flush=True)
        if ran.returncode:
            failed.append(kind)
            print("\n".join(told[-40:]), file=sys.stderr)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
