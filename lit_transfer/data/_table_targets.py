"""What the cells of a table's target columns mean, checked row by row."""

import json
import math
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, Literal, get_args

from lit_transfer.data._table import Table
from lit_transfer.data._table_faults import Faults
from lit_transfer.data._targets import Classes, Labels, Numbers, Targets

Task = Literal["class", "multilabel", "number"]
TASKS: tuple[Task, ...] = get_args(Task)
_TRUTH = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "false": 0.0, "true": 1.0}
_LEAVE_OUT = "Fill in the target, or leave these rows out."


def find_task(table: Table, columns: Sequence[str], separator: str) -> Task:
    """Tell the task from the cells of the target columns.

    Raises:
        ValueError: If it is not certain.
    """
    cells = {name: [cell for cell in table.columns[name] if cell != ""] for name in columns}
    if len(columns) == 1:
        return _task_of_one(columns[0], cells[columns[0]], separator)
    truths = [name for name in columns if all(map(_is_truth, cells[name]))]
    if len(truths) == len(columns):
        return "multilabel"
    if not truths and all(_number(cell) is not None for name in columns for cell in cells[name]):
        return "number"
    name = next(name for name in columns if name not in truths)
    row = next(row for row, cell in enumerate(table.columns[name]) if cell != "" and not _is_truth(cell))
    raise ValueError(
        f"what data.target={list(columns)} holds is not certain: {_told(truths)}, but column {name!r} holds "
        f"{table.columns[name][row]!r} in {table.place(row)}. Give data.task: 'multilabel' for columns of 0 and 1, "
        "'number' for numbers."
    )


def _task_of_one(name: str, cells: list[Any], separator: str) -> Task:
    if any(_is_list(cell) or separator in str(cell) for cell in cells):
        return "multilabel"
    numbers = [_number(cell) for cell in cells]
    if not any(number is not None for number in numbers):
        return "class"
    if all(number is not None for number in numbers) and not all(number == int(number or 0) for number in numbers):
        return "number"
    kind = "whole numbers" if all(number is not None for number in numbers) else "numbers and words"
    raise ValueError(
        f"what data.target={name!r} holds is not certain, since its cells are {kind}. Give data.task: 'class' if each "
        "stands for a class, 'number' if it is measured or counted, 'multilabel' if it tells whether a label holds."
    )


def _told(truths: list[str]) -> str:
    return f"{', '.join(map(repr, truths))} hold(s) only 0 and 1" if truths else "not all are numbers"


def read_targets(
    table: Table, columns: Sequence[str], task: Task, names: Sequence[str] | None, separator: str, faults: Faults
) -> tuple[Targets, Sequence[Any]]:
    """Read the target of each row: the number of its class, or a tuple of numbers.

    Args:
        table: The table.
        columns: Its target columns.
        task: What they hold.
        names: The classes, or the labels of a column of lists, in order; None for those that are there, sorted.
        separator: What stands between two labels of a list.
        faults: Takes what is wrong with a row.

    Raises:
        ValueError: If the columns cannot be what the task says.
    """
    cells = table.columns[columns[0]]
    lists = task == "multilabel" and len(columns) == 1 and _are_lists(cells)
    if task == "class" and len(columns) > 1:
        raise ValueError(f"data.task='class' takes one column with the class; got data.target={list(columns)}.")
    if names and not lists and task != "class":
        raise ValueError(
            f"data.names is for a column of classes or of lists; here the columns are it: {list(columns)}."
        )
    if task == "class":
        return _read_classes(cells, names, faults)
    if lists:
        return _read_lists(cells, names, separator, faults)
    return _read_truths(table, columns, faults) if task == "multilabel" else _read_numbers(table, columns, faults)


def _read_classes(cells: Sequence[Any], names: Sequence[str] | None, faults: Faults) -> tuple[Targets, list[int]]:
    """Number the classes of a column.

    Args:
        cells: One class for each row.
        names: The classes in order; None for those that are there, sorted, by value where all are whole numbers.
        faults: Takes rows without a class, or with one that is not in `names`.

    Raises:
        ValueError: If there are fewer than two classes.
    """
    words = [str(cell) for cell in cells]
    known = list(names) if names else _in_order({word for word in words if word})
    if len(known) < 2:
        raise ValueError(f"data.target must hold at least two classes; got {known}.")
    number = {name: place for place, name in enumerate(known)}
    for row, word in enumerate(words):
        if not word:
            mend = f"{_LEAVE_OUT} If images may have no label, give data.task='multilabel'."
            faults.add(row, "the target is empty", mend)
        elif word not in number:
            _add_unknown(faults, row, word, known)
    return Classes(known), [number.get(word, 0) for word in words]


def _read_lists(
    cells: Sequence[Any], names: Sequence[str] | None, separator: str, faults: Faults
) -> tuple[Targets, list[tuple[float, ...]]]:
    """Read a column with a list of labels in each cell: separated, or JSON, or a list of Parquet; it may be empty.

    Args:
        cells: The labels of each row.
        names: All labels in order; None for those that are there, sorted.
        separator: What stands between two labels.
        faults: Takes rows whose cell is no list, or that have a label that is not in `names`.

    Raises:
        ValueError: If no row has a label.
    """
    rows: list[set[str]] = []
    for row, cell in enumerate(cells):
        found = _words(cell, separator)
        if found is None:
            faults.add(row, f"{cell!r} is no list", f'Write lists as a{separator}b, or as JSON: ["a", "b"].')
        rows.append(found or set())
    known = list(names) if names else _in_order(set().union(*rows))
    if not known:
        faults.raise_any()
        raise ValueError("data.target holds no label in any row.")
    for row, labels in enumerate(rows):
        for label in sorted(labels - set(known)):
            _add_unknown(faults, row, label, known)
    return Labels(known), [tuple(float(name in labels) for name in known) for labels in rows]


def _read_truths(table: Table, names: Sequence[str], faults: Faults) -> tuple[Targets, list[tuple[float, ...]]]:
    """Read columns of 0 and 1 (or false and true), one for each label."""
    mend = "Write 0 or 1 for each label; for numbers, give data.task='number'."
    return Labels(list(names)), _read_columns(table, names, _truth, "neither 0 nor 1", mend, faults)


def _read_numbers(table: Table, names: Sequence[str], faults: Faults) -> tuple[Targets, list[tuple[float, ...]]]:
    """Read columns of finite numbers."""
    mend = "Write numbers with a decimal point and no unit, or leave these rows out."
    return Numbers(list(names)), _read_columns(table, names, _number, "no finite number", mend, faults)


def _are_lists(cells: Sequence[Any]) -> bool:
    """Tell whether one column of labels holds lists, and not 0 and 1 for a single label."""
    return not all(cell == "" or _is_truth(cell) for cell in cells)


def _read_columns(
    table: Table, names: Sequence[str], read: Callable[[Any], float | None], wrong: str, mend: str, faults: Faults
) -> list[tuple[float, ...]]:
    columns = []
    for name in names:
        values = [read(cell) for cell in table.columns[name]]
        for row, (cell, value) in enumerate(zip(table.columns[name], values, strict=True)):
            if cell == "":
                faults.add(row, f"the target {name!r} is empty", _LEAVE_OUT)
            elif value is None:
                faults.add(row, f"{name!r} is {cell!r}, {wrong}", mend)
        columns.append([0.0 if value is None else value for value in values])
    return list(zip(*columns, strict=True))


def _add_unknown(faults: Faults, row: int, word: str, known: list[str]) -> None:
    near = get_close_matches(word, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    faults.add(row, f"{word!r} is not among data.names{hint}", "Correct the labels, or add them to data.names.")


def _is_list(cell: Any) -> bool:
    return isinstance(cell, list) or (isinstance(cell, str) and cell.startswith("["))


def _words(cell: Any, separator: str) -> set[str] | None:
    """Give the labels of a cell, None if it is no list."""
    parts: Any = cell
    if isinstance(cell, str) and cell.startswith("["):
        try:
            parts = json.loads(cell)
        except json.JSONDecodeError:
            return None
    elif not isinstance(cell, list):
        parts = str(cell).split(separator)
    return {word for part in parts if part is not None and (word := str(part).strip())}


def _truth(cell: Any) -> float | None:
    return _TRUTH.get(str(cell).lower())


def _is_truth(cell: Any) -> bool:
    return _truth(cell) is not None


def _number(cell: Any) -> float | None:
    try:
        number = float(cell)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _in_order(words: set[str]) -> list[str]:
    """Sort by value where all are whole numbers, so that 10 comes after 9; else as text."""
    whole = all(word.isascii() and word.removeprefix("-").isdigit() for word in words)
    return sorted(words, key=lambda word: (int(word), word)) if whole else sorted(words)
