"""`lit-transfer predict CKPT IMAGES...`: label images with a checkpoint."""

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import track

from lit_transfer._answers import answer_columns, answer_entries
from lit_transfer.cli._parsing import CommandParser
from lit_transfer.predictor import Predictor, find_images, load_predictor


def main(argv: Sequence[str]) -> None:
    """Run the command with `argv`, whose first word is its name."""
    arguments = _parser().parse_args(argv[1:])
    predictor = load_predictor(
        arguments.checkpoint, arguments.device, batch_size=arguments.batch_size, tta=arguments.tta
    )
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
    flips = "average over each image and its mirror image, at twice the computing; not where left and right differ"
    crops = "average over five crops and their mirror images, at ten times the computing"
    views = parser.add_mutually_exclusive_group()
    views.add_argument("--tta", action="store_const", const="flip", help=flips)
    views.add_argument("--tta-crops", dest="tta", action="store_const", const="crops", help=crops)
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of CSV")
    return parser


def _answers(predictor: Predictor, paths: Sequence[Path]) -> Iterator[tuple[str, Any]]:
    stream = zip(paths, predictor.stream(paths), strict=True)
    console = Console(stderr=True)  # standard output may be the answers
    for path, answer in track(stream, "predicting", total=len(paths), console=console, disable=not console.is_terminal):
        yield str(path), answer


def _write(as_json: bool, answers: Iterable[tuple[str, Any]], file: TextIO) -> None:
    if as_json:
        for path, answer in answers:
            print(json.dumps({"path": path, **answer_entries(answer)}), file=file)
        return
    writer = None
    for path, answer in answers:
        row = {"path": path, **answer_columns(answer)}
        if writer is None:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
        writer.writerow(row)
