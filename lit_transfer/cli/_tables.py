"""How the commands about checkpoints print: tables that fit a terminal, are good in a pipe, and obey no file."""

import sys
from collections.abc import Iterable, Sequence
from io import StringIO

from rich import box
from rich.console import Console
from rich.table import Table

_PIPE_COLUMNS = 100


def show(*parts: Table | str) -> None:
    """Print tables and lines, as wide as the terminal or 100 columns in a pipe, without blanks at the ends of lines."""
    terminal = Console(force_jupyter=False)
    width = terminal.width if terminal.is_terminal else _PIPE_COLUMNS
    text = StringIO()
    # In a notebook rich would write HTML past the file; the commands print text wherever they run.
    console = Console(
        file=text, width=width, force_jupyter=False, color_system=None, highlight=False, markup=False, emoji=False
    )
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))
    lines = "\n".join(line.rstrip() for line in text.getvalue().splitlines())
    encoding = sys.stdout.encoding or "utf-8"
    print(lines.encode(encoding, "replace").decode(encoding))


def make_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: Sequence[str] = ()) -> Table:
    """A table without the columns that are empty in every row; the columns in `numbers` are set to the right."""
    written = [[safe(cell) for cell in row] for row in rows]
    kept = [i for i in range(len(columns)) if any(row[i] for row in written)]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for i in kept:
        table.add_column(columns[i], justify="right" if columns[i] in numbers else "left", overflow="fold")
    for row in written:
        table.add_row(*(row[i] for i in kept))
    return table


def make_list(rows: Iterable[tuple[str, object]]) -> Table:
    """Names beside values, without a header."""
    table = Table.grid(padding=(0, 2))
    table.add_column(overflow="fold", max_width=40)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(safe(name), safe(value))
    return table


def safe(value: object) -> str:
    """Text from a file without what a terminal would obey."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(value))


def as_size(count: int) -> str:
    """Bytes in the unit that people use, 1 MB being a million."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"


def as_count(number: int, thing: str) -> str:
    """A number with its noun: `1 tensor`, `1,234 tensors`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def as_shape(shape: Sequence[int]) -> str:
    """A shape as people write it: `64x3x7x7`."""
    return "x".join(map(str, shape)) or "scalar"
