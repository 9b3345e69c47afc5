"""Public layouts of checkpoints, made from real models: the path alone loads them, whole and right."""

from pathlib import Path

import pytest
import torch
from layout_parts import body
from zoo import Case, cases, row
from zoo_vits import TO_TORCHVISION, renamed

PAGE = (Path(__file__).parents[2] / "docs" / "layouts.md").read_text(encoding="utf-8").splitlines()
CHANGED = {"deit_distilled": {"pos_embed"}}  # by adapting, for which there are tests of their own


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_the_path_is_enough(case: Case, tmp_path: Path) -> None:
    source, model, report = case.load(tmp_path)
    wanted = body(source)
    if case.name.endswith("-torchvision"):
        wanted = renamed(wanted, TO_TORCHVISION)
    loaded = body(model)
    assert loaded.keys() == wanted.keys()
    for name, tensor in loaded.items():
        counted = name.endswith("num_batches_tracked")  # files of before torch 0.4.1 have none
        if not counted and name not in CHANGED.get(case.name, set()):
            assert torch.equal(tensor, wanted[name]), name
    fresh = {name for name in report.missing if not name.endswith("num_batches_tracked")}
    assert fresh <= set(model.state_dict()) - set(loaded), "more than the head is fresh"
    assert row(case, report) in PAGE, "docs/layouts.md is of before: python tests/weights/zoo.py > docs/layouts.md"


def test_the_page_has_no_other_layouts() -> None:
    assert sum(line.startswith("| ") for line in PAGE) == 1 + len(cases())
