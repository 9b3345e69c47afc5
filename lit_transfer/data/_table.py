"""A table read from a CSV or Parquet file: its columns by name, and where in the file each row stands."""

import csv
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

_DELIMITERS = {".csv": ",;\t", ".tsv": "\t", ".txt": ",;\t"}
_PARQUET = (".parquet", ".pq")


@dataclass(frozen=True)
class Table:
    """The rows of a table.

    Attributes:
        file: Where it was read.
        columns: Cells of each column, by its name: text without blanks around it, `""` for nothing. Parquet gives
            numbers, truth values and lists too.
        lines: Where each row begins: its line in the CSV file, the heading being line 1; or its number in a Parquet
            file, the first being 1.
        unit: `"line"` or `"row"`.
    """

    file: Path
    columns: dict[str, list[Any]]
    lines: Sequence[int]
    unit: str

    def __len__(self) -> int:
        return len(self.lines)

    def column(self, name: str, argument: str) -> list[Any]:
        """Give the cells of a column that an argument of the datamodule names.

        Raises:
            ValueError: If there is none; it names the nearest.
        """
        if name not in self.columns:
            raise ValueError(f"{argument}={name!r} is no column of {str(self.file)!r}.{_nearest(name, self.columns)}")
        return self.columns[name]

    def place(self, row: int) -> str:
        """Say where a row stands, as `line 7`."""
        return f"{self.unit} {self.lines[row]}"


def read_table(file: Path) -> Table:
    """Read a table, CSV or Parquet by the ending of its name.

    A CSV file is UTF-8, with or without a byte order mark; its columns are separated by the one of comma, semicolon
    and tab that its heading has most of.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If it is Parquet and pyarrow is not installed.
        ValueError: If it is no table: another kind of file or text, a row longer or shorter than the heading, a column
            twice, no rows.
    """
    if not file.is_file():
        raise FileNotFoundError(f"data.table must be a CSV or Parquet file; at {str(file)!r} there is none.")
    suffix = file.suffix.lower()
    if suffix not in (*_DELIMITERS, *_PARQUET):
        endings = ", ".join((*_DELIMITERS, *_PARQUET))
        raise ValueError(f"data.table={str(file)!r}: expected a file that ends in {endings}.")
    table = _read_parquet(file) if suffix in _PARQUET else _read_csv(file, _DELIMITERS[suffix])
    if not table.lines:
        raise ValueError(f"data.table={str(file)!r} has a heading and no rows.")
    return table


def _read_csv(file: Path, delimiters: str) -> Table:
    try:
        # newline="": the csv module sees line breaks inside quotes, and CRLF, as they are
        with file.open(encoding="utf-8-sig", newline="") as text:
            heading = text.readline()
            text.seek(0)
            rows = csv.reader(text, delimiter=max(delimiters, key=heading.count), strict=True)
            return _from_rows(file, rows)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"data.table={str(file)!r} is no UTF-8 text: byte {error.object[error.start]:#04x} is none. Save it as "
            "CSV UTF-8."
        ) from error
    except csv.Error as error:
        raise ValueError(f"data.table={str(file)!r} is no CSV as expected: {error}. Mend its quotes.") from error


def _from_rows(file: Path, rows: Any) -> Table:
    names = [name.strip() for name in next(rows, [])]
    _check_heading(file, names)
    lines: list[int] = []
    cells: list[list[str]] = []
    end = rows.line_num
    for row in rows:
        begin, end = end + 1, rows.line_num  # a quoted cell may go over several lines
        if not row:
            continue  # an empty line
        if len(row) != len(names):
            raise ValueError(
                f"data.table={str(file)!r}, line {begin}: {len(row)} cells under a heading of {len(names)}. Put cells "
                "that hold the separator in quotes, and leave none out."
            )
        lines.append(begin)
        cells.append([cell.strip() for cell in row])
    columns = [list(column) for column in zip(*cells, strict=True)] or [[] for _ in names]
    return Table(file, {name: column for name, column in zip(names, columns, strict=True) if name}, lines, "line")


def _check_heading(file: Path, names: list[str]) -> None:
    """Refuse a column twice; one without a name is that of the row numbers, as pandas writes them."""
    twice = [name for name, count in Counter(names).items() if count > 1 and name]
    if twice:
        raise ValueError(f"data.table={str(file)!r} has the column {twice[0]!r} twice: rename one.")
    if not any(names):
        raise ValueError(f"data.table={str(file)!r} is empty: expected a heading with the names of the columns.")


def _read_parquet(file: Path) -> Table:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("a Parquet table needs pyarrow: pip install 'lit-transfer[parquet]'.") from error
    try:
        with file.open("rb") as opened:  # a handle: a path would be looked at for partitions in its folders' names
            read = pyarrow.parquet.read_table(opened)
    except pyarrow.ArrowException as error:
        raise ValueError(f"data.table={str(file)!r} is no Parquet file that can be read: {error}.") from error
    _check_heading(file, read.column_names)
    columns = {name: [_plain(cell) for cell in read.column(name).to_pylist()] for name in read.column_names}
    return Table(file, columns, range(1, read.num_rows + 1), "row")


def _plain(cell: Any) -> Any:
    """Give a cell of Parquet as one of CSV would be where it is text or nothing; pandas writes NaN for nothing."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    return cell.strip() if isinstance(cell, str) else cell


def _nearest(name: str, known: dict[str, Any]) -> str:
    near = get_close_matches(name, known, n=1) or get_close_matches(name.lower(), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{hint} It has {', '.join(map(repr, known))}."
