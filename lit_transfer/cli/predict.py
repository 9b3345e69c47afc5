"""`lit-transfer predict CKPT IMAGES...`: label images with a checkpoint."""

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, is_dataclass
from io import StringIO
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import track

from lit_transfer.cli._parsing import CommandParser
from lit_transfer.predictor import Predictor, find_images, load_predictor


def main(argv: Sequence[str]) -> None:
    """Run the command with `argv`, whose first word is its name."""
    arguments = _parser().parse_args(argv[1:])
    predictor = load_predictor(arguments.checkpoint, arguments.device, batch_size=arguments.batch_size)
    paths = [path for place in arguments.images for path in find_images(place)]
    answers = _answers(predictor, paths)
    if arguments.output is None:
        _write(arguments.json, answers, sys.stdout)
        return
    written = StringIO(newline="")  # all answers first: a broken image must not leave half a file
    _write(arguments.json, answers, written)
    Path(arguments.output).write_text(written.getvalue(), encoding="utf-8", newline="")
    print(f"{len(paths)} images -> {arguments.output}")


def _parser() -> CommandParser:
    parser = CommandParser(prog="lit-transfer predict", description="Label images with a checkpoint.")
    parser.add_argument("checkpoint", help="a .ckpt file that lit-transfer fit wrote")
    parser.add_argument("images", nargs="+", help="image files and folders")
    parser.add_argument("-o", "--output", help="file for the answers; standard output if not given")
    parser.add_argument("--device", default="auto", help="torch device; the first GPU, else the CPU, by default")
    parser.add_argument("--batch-size", type=int, default=32, help="images computed at a time")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of CSV")
    return parser


def _answers(predictor: Predictor, paths: Sequence[Path]) -> Iterator[tuple[str, Any]]:
    stream = zip(paths, predictor.stream(paths), strict=True)
    console = Console(stderr=True)  # standard output may be the answers
    for path, answer in track(stream, "predicting", total=len(paths), console=console, disable=not console.is_terminal):
        yield str(path), answer


def _entries(answer: Any) -> dict[str, Any]:
    return asdict(answer) if is_dataclass(answer) else {"answer": answer}  # type: ignore[arg-type]  # an instance, not a class


def _columns(answer: Any) -> dict[str, Any]:
    """Ask an answer for its columns (`label, probability, p(ants), p(bees)`), numbers with the digits of float32."""
    columns = answer.columns() if hasattr(answer, "columns") else _entries(answer)
    if "path" in columns:
        raise ValueError("the answers have a column 'path' of their own, which would hide the image's: give --json.")
    return {name: f"{value:.7g}" if isinstance(value, float) else value for name, value in columns.items()}


def _write(as_json: bool, answers: Iterable[tuple[str, Any]], file: TextIO) -> None:
    if as_json:
        for path, answer in answers:
            print(json.dumps({"path": path, **_entries(answer)}), file=file)
        return
    writer = None
    for path, answer in answers:
        row = {"path": path, **_columns(answer)}
        if writer is None:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
        writer.writerow(row)
