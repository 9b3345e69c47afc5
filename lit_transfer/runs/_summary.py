"""What several runs reached together: mean and spread of each metric."""

from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from lit_transfer.runs._ledger import Kind, Ledger


@dataclass(frozen=True)
class Summary:
    """The runs that are done.

    Attributes:
        kind: What tells the runs apart: `"folds"` or `"seeds"`.
        folder: Where they lie: a folder for each with its checkpoints, `out_of_fold.csv`, and `runs.json`.
        runs: Name of each run -> name of each metric -> its value on the run's validation images.
        pooled: Metrics over all out-of-fold answers together; of folds only.
    """

    kind: Kind
    folder: Path
    runs: dict[str, dict[str, float]]
    pooled: dict[str, float] = field(default_factory=dict)

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics, the loss last."""
        names = dict.fromkeys(name for values in self.runs.values() for name in values)
        return sorted(names, key=lambda name: name.endswith("loss"))

    @property
    def mean(self) -> dict[str, float]:
        """Mean of each metric over the runs that have it."""
        return {name: fmean(self._values(name)) for name in self.metrics}

    @property
    def std(self) -> dict[str, float | None]:
        """Sample standard deviation (n - 1) of each metric over the runs that have it; None below two runs."""
        values = {name: self._values(name) for name in self.metrics}
        return {name: stdev(found) if len(found) > 1 else None for name, found in values.items()}

    def _values(self, name: str) -> list[float]:
        return [values[name] for values in self.runs.values() if name in values]

    def to_dict(self) -> dict[str, Any]:
        """Give all of it as plain values."""
        plain = {"kind": self.kind, "folder": str(self.folder), "runs": self.runs}
        return {**plain, "mean": self.mean, "std": self.std, "pooled": self.pooled}

    def rows(self) -> list[list[str]]:
        """Give a table, its heading first: a row for each run, and mean and standard deviation below.

        Where there are more metrics than runs, there is a row for each metric.
        """
        std = {name: "" if value is None else f"± {value:.4f}" for name, value in self.std.items()}
        mean = {name: f"{value:.4f}" for name, value in self.mean.items()}
        each = {run: {name: f"{value:.4f}" for name, value in values.items()} for run, values in self.runs.items()}
        columns = {**each, "mean": mean, "std": std}
        if self.pooled:
            columns["all answers"] = {f"val_{name}": f"{value:.4f}" for name, value in self.pooled.items()}
        table = [["", *columns]]
        table += [[name, *(cells.get(name, "") for cells in columns.values())] for name in self.metrics]
        return table if len(self.metrics) > len(self.runs) else [list(row) for row in zip(*table, strict=True)]


def summarise(ledger: Ledger) -> Summary:
    """Sum up the runs of a ledger that are done, in its order."""
    runs = {ledger.name(number): ledger.done[number] for number in ledger.numbers if number in ledger.done}
    return Summary(ledger.kind, ledger.folder, runs, ledger.pooled)
