"""Everything that is wrong with the rows of a table, in one error."""

from lit_transfer.data._table import Table

SHOWN = 5


class Faults:
    """Collects what is wrong with which row, so that a table is mended once and not row by row."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self._found: dict[int, tuple[str, str]] = {}

    def add(self, row: int, what: str, mend: str) -> None:
        """Note what is wrong with a row, and how it is mended; the first of a row counts."""
        self._found.setdefault(row, (what, mend))

    def raise_any(self) -> None:
        """Raise what was noted.

        Raises:
            ValueError: The first few rows with their places in the file, how many there are in all, and the mends.
        """
        if not self._found:
            return
        shown = sorted(self._found.items())[:SHOWN]
        count = len(self._found)
        rows = "\n  ".join(f"{self.table.place(row)}: {what}" for row, (what, _) in shown)
        more = f"\n  ... and {count - SHOWN} more" if count > SHOWN else ""
        mends = " ".join(dict.fromkeys(mend for _, (_, mend) in shown))
        bad = "1 bad row" if count == 1 else f"{count} bad rows"
        raise ValueError(f"data.table={str(self.table.file)!r} has {bad}:\n  {rows}{more}\n{mends}")
