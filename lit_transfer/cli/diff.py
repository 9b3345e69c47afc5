"""`lit-transfer diff A B`: compare two checkpoints tensor by tensor.

They are equal if they have the same names, shapes and dtypes, and values that differ by the tolerance at most; a prefix
in which all names differ, such as DataParallel's, is no difference. Exit code 0: equal; 1: different; 2: a file cannot
be read.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from lit_transfer.cli._parsing import CommandParser
from lit_transfer.cli._tables import as_count, as_shape, make_table, safe, show
from lit_transfer.cli._upstream import as_flags
from lit_transfer.weights import WeightsError, diff_checkpoints, open_checkpoint

_MOST_ROWS = 30


def main(argv: Sequence[str]) -> int:
    """Run the command with `argv`, whose first word is its name; give 0 for equal and 1 for different checkpoints."""
    arguments = _parser().parse_args(argv[1:])
    one, other = open_checkpoint(arguments.first), open_checkpoint(arguments.second)
    try:
        told = diff_checkpoints(
            one, other, key=arguments.key, other_key=arguments.other_key, tolerance=arguments.tolerance
        )
    except WeightsError as error:
        raise WeightsError(as_flags(str(error))) from error
    if arguments.any_dtype:
        told["dtypes"] = {}
    rows = list(_differences(told))
    told["is_equal"] = not rows
    if arguments.json:
        print(json.dumps(told))
    else:
        _show(told, rows, every=arguments.all)
    return 1 if rows else 0


def _parser() -> CommandParser:
    parser = CommandParser(prog="lit-transfer diff", description=(__doc__ or "").replace("`", ""))
    parser.add_argument("first", metavar="A", help="a checkpoint: path, http(s):// or hf:// address, folder of shards")
    parser.add_argument("second", metavar="B", help="another one")
    parser.add_argument("--key", help="which state dict of A; found if not given")
    parser.add_argument("--other-key", help="which state dict of B; found if not given")
    parser.add_argument("--tolerance", type=float, default=0.0, help="largest difference of equal values (default 0)")
    parser.add_argument("--any-dtype", action="store_true", help="another dtype is no difference")
    parser.add_argument("--all", action="store_true", help="list every difference, however many")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    return parser


def _differences(told: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Name, what differs, and how, in the order of the first file."""
    for name, (one, other) in told["shapes"].items():
        yield name, "shape", f"{as_shape(one)} -> {as_shape(other)}"
    for name, (one, other) in told["dtypes"].items():
        yield name, "dtype", f"{one} -> {other}"
    for name, gap in told["different"].items():
        yield name, "values", "not finite" if gap is None else f"up to {gap:.3g}"
    yield from ((name, "only in A", "") for name in told["only_in_first"])
    yield from ((name, "only in B", "") for name in told["only_in_second"])


def _show(told: dict[str, Any], rows: Sequence[Sequence[str]], *, every: bool) -> None:
    for side, source, key, prefix in zip("AB", told["sources"], told["keys"], told["prefixes"], strict=True):
        where = f", state dict {key!r}" if key else ""
        below = f", names below `{prefix}.`" if prefix else ""
        show(safe(f"{side}  {source}{where}{below}"))
    for note in told["notes"]:
        show(safe(f"note: {note}"))
    if rows:
        show("", make_table(["tensor", "difference", "how"], rows if every else rows[:_MOST_ROWS]))
    if len(rows) > _MOST_ROWS and not every:
        show(f"... and {len(rows) - _MOST_ROWS} more; --all lists them")
    kinds = Counter(row[1] for row in rows)
    counts = ", ".join(f"{kind} {count:,}" for kind, count in kinds.items())
    equal = as_count(len(told["equal"]), "tensor")
    show("", f"different: {counts}; equal values: {equal}" if rows else f"equal: {equal}")
