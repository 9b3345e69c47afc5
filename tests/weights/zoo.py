"""The zoo: public layouts of checkpoints, each as a case of a file, the model that it was made from, and another.

python tests/weights/zoo.py > docs/layouts.md
"""

import inspect
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from layout_parts import body
from torch import nn
from zoo_others import OTHERS
from zoo_resnets import RESNETS, resnet
from zoo_vits import VITS, torchvision_vit, vit

from lit_transfer.weights import LoadReport, WeightsError, load_weights


@dataclass(frozen=True)
class Case:
    """A layout and a model to load it into."""

    name: str
    told: str
    make: Callable[[], tuple[nn.Module, Any, nn.Module]]

    def load(self, folder: Path) -> tuple[nn.Module, nn.Module, LoadReport]:
        """Write the file and load it by its path alone: the model that it was made from, the one loaded, the report."""
        source, content, model = self.make()
        torch.save(content, folder / "f.pth")
        return source, model, load_weights(model, folder / "f.pth")


def _of_resnet(write: Callable[[nn.Module], Any]) -> Callable[[], tuple[nn.Module, Any, nn.Module]]:
    def make() -> tuple[nn.Module, Any, nn.Module]:
        source = resnet()
        return source, write(source), resnet(3)

    return make


def _of_vit(write: Callable[[dict[str, Any]], Any], build: Callable[[], nn.Module]) -> Any:
    def make() -> tuple[nn.Module, Any, nn.Module]:
        source, model = vit(), build()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        return source, write(body(source)), model

    return make


def cases() -> list[Case]:
    """Give every layout, those of transformers into the models of both libraries."""
    made = [Case(f"resnet-{f.__name__}", _told(f), _of_resnet(f)) for f in RESNETS]
    made += [Case(f"vit-{f.__name__}", f"{_told(f)} -> timm", _of_vit(f, vit)) for f in VITS]
    made += [
        Case(f"vit-{f.__name__}-torchvision", f"{_told(f)} -> torchvision", _of_vit(f, torchvision_vit)) for f in VITS
    ]
    return made + [Case(f.__name__, _told(f), f) for f in OTHERS]


def _told(function: Callable[..., Any]) -> str:
    return " ".join((inspect.getdoc(function) or "").split()).rstrip(".")


def row(case: Case, report: LoadReport) -> str:
    """Give the line of the page that tells how a layout was loaded."""
    layout, _, source = case.told.partition(" (")
    adapted = sorted(set(report.adapted.values()))
    cells = (
        layout,
        source.replace(")", "", 1),
        f"`{report.key}`" if report.key else "",
        str(report.edit),
        "; ".join(adapted),
    )
    return f"| {' | '.join(cells)} |"


def _loaded(case: Case) -> str:
    with tempfile.TemporaryDirectory() as folder:
        try:
            return row(case, case.load(Path(folder))[2])
        except WeightsError as error:
            return f"| {case.told} | refused: {error} | | | |"


def main() -> None:
    """Print the page."""
    warnings.simplefilter("ignore")
    rows = [_loaded(case) for case in cases()]
    print("# Layouts of checkpoints that load by their path alone\n")
    print(f"{len(RESNETS) + len(VITS) + len(OTHERS)} layouts, each written from a real model by a function in")
    print("`tests/weights/zoo_*.py` and loaded with `load_weights(model, path)`; the table is printed by")
    print("`python tests/weights/zoo.py`, and the tests compare every tensor.\n")
    print("| layout | written by | weights found under | names | adapted |\n|---|---|---|---|---|")
    print("\n".join(rows))
    sys.exit(any("refused" in row for row in rows))


if __name__ == "__main__":
    main()
