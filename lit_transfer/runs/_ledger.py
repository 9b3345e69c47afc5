"""Which of several runs are done, and what they reached: one file in their folder, written after each of them."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

Kind = Literal["folds", "seeds"]
FILE = "runs.json"


class Ledger:
    """The record of several runs in one folder; each run has a folder of its own name in it.

    Attributes:
        folder: Where the runs lie.
        kind: What tells them apart: `"folds"` or `"seeds"`.
        numbers: Number of each run, its fold or its seed, in the order in which they run.
        done: Number of each run that is done -> what it reached, by name.
        pooled: What all answers together reached, of the folds that are done.
    """

    def __init__(self, folder: str | Path, kind: Kind, numbers: Sequence[int], settings: Mapping[str, Any]) -> None:
        """Open the record, which may have been begun by an earlier call.

        Args:
            folder: Where the runs lie, or will.
            kind: What tells them apart.
            numbers: Their folds or seeds. More seeds than before are welcome; other folds are not, as the cut differs.
            settings: What the runs have in common, plain values; those of the earlier call must be the same.

        Raises:
            ValueError: If the folder holds runs of another kind, with other folds or other settings.
        """
        self.folder, self.kind, self.numbers = Path(folder), kind, list(numbers)
        self.settings = json.loads(json.dumps(settings, default=str))
        self.done: dict[int, dict[str, float]] = {}
        self.pooled: dict[str, float] = {}
        if (self.folder / FILE).is_file():
            self._take_over(json.loads((self.folder / FILE).read_text(encoding="utf-8")))

    def _take_over(self, before: dict[str, Any]) -> None:
        where = f"{str(self.folder)!r} holds runs"
        if before["kind"] != self.kind:
            raise ValueError(f"{where} over {before['kind']}, not over {self.kind}: give another folder.")
        if self.kind == "folds" and before["numbers"] != self.numbers:
            raise ValueError(
                f"{where} over {len(before['numbers'])} folds, not {len(self.numbers)}: give another folder."
            )
        if other := different(before["settings"], self.settings):
            told = "; ".join(f"{name} was {old!r} and is {new!r}" for name, (old, new) in other.items())
            raise ValueError(f"{where} with other settings: {told}. Give the same ones, or another folder.")
        self.done = {run["number"]: run["values"] for run in before["runs"]}
        self.pooled = before["pooled"]

    @property
    def missing(self) -> list[int]:
        """The runs that are not done."""
        return [number for number in self.numbers if number not in self.done]

    def name(self, number: int) -> str:
        """Give the name of a run, which is that of its folder: `fold_0`, `seed_3`."""
        return f"{self.kind.removesuffix('s')}_{number}"

    def place(self, number: int) -> Path:
        """Give the folder of a run."""
        return self.folder / self.name(number)

    def note(self, number: int, values: Mapping[str, float], pooled: Mapping[str, float]) -> None:
        """Write down that a run is done, whole or not at all."""
        self.done[number], self.pooled = dict(values), dict(pooled)
        runs = [{"number": number, "values": values} for number, values in self.done.items()]
        record = {"kind": self.kind, "numbers": self.numbers, "settings": self.settings}
        write_text(self.folder / FILE, json.dumps({**record, "runs": runs, "pooled": self.pooled}, indent=1))


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)  # noqa: PTH105  # as elsewhere: one name for what is atomic


def different(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Give the settings that are not the same, under dotted names: what they were and are; None where missing."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in [*old, *(name for name in new if name not in old)]:
        before, now = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            found |= {f"{name}.{inner}": pair for inner, pair in different(before, now).items()}
        elif before != now:
            found[name] = before, now
    return found
