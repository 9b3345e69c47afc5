"""The short form of tests/benchmarks/conformance.py: one small architecture of each source, ONNX left out."""

from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def conformance(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import conformance

    return conformance


@pytest.mark.parametrize("name", ["squeezenet1_1", "timm/test_vit", "hf:resnet"])
def test_it_gives_what_every_column_asks(conformance: Any, name: str) -> None:
    columns = [column for column in conformance.CHECKS if column != "ONNX"]
    row = conformance.ask(name, columns)
    assert list(row["answers"]) == columns
    assert {column: answer for column, answer in row["answers"].items() if not conformance.is_good(answer)} == {}


def test_what_is_not_so_is_told_with_its_reason(conformance: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import conformance_checks
    from conformance_table import written

    monkeypatch.setattr(conformance_checks, "freeze", lambda backbone, what: None)
    row = conformance.ask("hf:resnet", ["freeze", "decay"])
    assert row["answers"] == {"create": "ok", "freeze": "stem is not frozen", "decay": "ok"}
    text = written({"hf:resnet": row})
    assert "| `hf:resnet` | resnet | 0.00 | 64 | ok | not asked | not asked | stem is not frozen |" in text
    assert "| hf | 1 | 1 | 1 of 1 | 0 of 0 | 0 of 0 | 0 of 1 |" in text


def test_what_is_answered_is_not_asked_again(conformance: Any, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text('{"name": "hf:resnet", "answers": {"create": "ok", "decay": "TypeError: none"}}\n')
    conformance.run(["hf:resnet"], ["decay"], file)
    assert conformance.read(file)["hf:resnet"]["answers"]["decay"] == "TypeError: none"
