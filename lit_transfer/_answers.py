"""How an answer of `describe_answer` stands in a table."""

from dataclasses import asdict, is_dataclass
from typing import Any


def answer_entries(answer: Any) -> dict[str, Any]:
    """Give an answer as plain values by name."""
    return asdict(answer) if is_dataclass(answer) else {"answer": answer}  # type: ignore[arg-type]  # an instance, not a class


def answer_columns(answer: Any) -> dict[str, Any]:
    """Ask an answer for its columns (`label, probability, p(ants), p(bees)`), numbers with the digits of float32.

    Raises:
        ValueError: If one of them would hide the image's path.
    """
    columns = answer.columns() if hasattr(answer, "columns") else answer_entries(answer)
    if "path" in columns:
        raise ValueError("the answers have a column 'path' of their own, which would hide the image's: give --json.")
    return {name: f"{value:.7g}" if isinstance(value, float) else value for name, value in columns.items()}
