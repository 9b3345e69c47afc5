"""Every backbone through everything that backbones promise: python tests/benchmarks/conformance.py [NAMES]

Random weights, float32, one thread, CPU, two images, no network. Each architecture runs in a process of its own; what
it gives is a line of a JSON lines file. Called again, it goes on where it was: what is in the file is not asked again.
`--onnx` adds the column of ONNX, which takes most of the time; `--table` writes docs/conformance.md from the file.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
import warnings
from collections.abc import Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from conformance_checks import CHECKS, ON_META, Subject, Unmet
from conformance_models import family_of, is_good, names

LONGEST = 900  # seconds for one architecture
DOCS = Path(__file__).parents[2] / "docs" / "conformance.md"
Row = dict[str, Any]


def ask(name: str, columns: Iterable[str]) -> Row:
    """Ask one architecture what the columns ask; each answer is its own, or the reason why there is none."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    row: Row = {"name": name, "family": family_of(name), "answers": {}}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        subject = Subject(name, Path(folder))
        for column in dict.fromkeys(("create", *columns)):
            row["answers"][column] = answer = _answer(subject, column)
            if column == "create":
                row |= {"size": subject.size, "own size": subject.own_size, "meta": subject.on_meta}
                if answer != "ok":
                    return row
                row["parameters"] = subject.count
    return row | {"seconds": round(time.perf_counter() - start, 1)}


def _answer(subject: Subject, column: str) -> str:
    if subject.on_meta and column not in ON_META:
        return "-"
    try:
        return CHECKS[column](subject)
    except Exception as error:
        return _reason(error)


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines() or [""]
    return text[0] if isinstance(error, Unmet) else f"{type(error).__name__}: {text[0]}"[:300]


def run(wanted: list[str], columns: list[str], file: Path, *, again: bool = False) -> None:
    """Ask each architecture that is not answered yet, each in a process of its own."""
    rows, context = read(file), multiprocessing.get_context("fork")
    for number, name in enumerate(wanted, 1):
        answers = rows.get(name, {}).get("answers", {})
        if all(column in answers and not (again and not is_good(answers[column])) for column in columns):
            continue
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(sender, name, columns))
        process.start()
        sender.close()
        failed = {"name": name, "family": family_of(name), "answers": dict.fromkeys(columns, "the process ended")}
        try:
            row = (
                receiver.recv() if receiver.poll(LONGEST) else {**failed, "answers": dict.fromkeys(columns, "too long")}
            )
        except EOFError:
            row = failed
        process.kill()
        process.join()
        with file.open("a") as lines:
            lines.write(json.dumps(row) + "\n")
        bad = {column: answer for column, answer in row["answers"].items() if not is_good(answer)}
        print(f"{number}/{len(wanted)} {name} {row.get('seconds')} s {bad or ''}", flush=True)


def _child(sender: Connection, name: str, columns: list[str]) -> None:
    sender.send(ask(name, columns))


def read(file: Path) -> dict[str, Row]:
    """Read the file; of two answers to one question the last counts."""
    rows: dict[str, Row] = {}
    for line in file.read_text().splitlines() if file.exists() else ():
        row = json.loads(line)
        before = rows.get(row["name"], {})
        rows[row["name"]] = {**before, **row, "answers": {**before.get("answers", {}), **row["answers"]}}
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Ask, and write the table if that is wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="such as resnet18, timm/resnet18, hf:vit; all if not given")
    parser.add_argument("--file", type=Path, default=Path("conformance.jsonl"), help="where the answers are kept")
    parser.add_argument("--onnx", action="store_true", help="the column of ONNX alone")
    parser.add_argument("--again", action="store_true", help="ask once more what was not met")
    parser.add_argument("--table", action="store_true", help="write docs/conformance.md and ask nothing")
    chosen = parser.parse_args(arguments)
    if chosen.table:
        from conformance_table import written

        DOCS.write_text(written(read(chosen.file)))
        return
    columns = ["ONNX"] if chosen.onnx else [column for column in CHECKS if column != "ONNX"]
    run(chosen.names or names(), columns, chosen.file, again=chosen.again)


if __name__ == "__main__":
    main()
