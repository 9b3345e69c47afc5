"""A temperature that was lost is found again, the error is that of its definition, and hopeless input is refused."""

import math
from pathlib import Path

import pytest
import torch

from lit_transfer.calibration import CalibrationError, fit_temperature, plot_reliability, reliability


def drawn(images: int = 20_000, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits whose softmax is the truth: each label is drawn by it."""
    generator = torch.Generator().manual_seed(0)
    logits = 1.5 * torch.randn(images, classes, generator=generator)
    return logits, torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)


@pytest.mark.parametrize("wrong", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("classes", [2, 4])
def test_the_temperature_is_found_and_no_answer_changes(wrong: float, classes: int) -> None:
    logits, labels = drawn(classes=classes)
    found = fit_temperature(logits * wrong, labels)
    assert found == pytest.approx(wrong, rel=0.05)
    before, after = reliability(logits * wrong, labels), reliability(logits * wrong / found, labels)
    assert after.accuracy == before.accuracy
    assert after.nll <= before.nll
    assert after.ece < 0.02


def test_the_best_temperature_is_best() -> None:
    logits, labels = drawn(200)
    found = fit_temperature(logits * 3, labels)
    best = reliability(logits * 3 / found, labels).nll
    assert all(reliability(logits * 3 / (found * factor), labels).nll > best for factor in (0.99, 1.01))


def test_the_measures_are_those_of_their_definition() -> None:
    # Confidences 0.9 (twice, one right) and 0.6 (right): |0.5 - 0.9| * 2/3 + |1 - 0.6| * 1/3.
    logits = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.6, 0.4]]).log()
    found = reliability(logits, torch.tensor([0, 0, 0]))
    assert found.ece == pytest.approx(0.4, abs=1e-6)
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.nll == pytest.approx(-(math.log(0.9) + math.log(0.1) + math.log(0.6)) / 3, abs=1e-6)
    assert [share for share in found.shares if share] == pytest.approx([1 / 3, 2 / 3])
    assert [value for value in found.accuracies if value == value] == [1.0, 0.5]


def test_logits_between_zero_and_one_are_no_probabilities() -> None:
    metric = CalibrationError(2)
    logits, labels = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    metric.update(logits, labels)
    assert metric.compute() == pytest.approx(1 - logits.softmax(-1)[0, 0].item())


def test_what_no_temperature_fits_is_refused() -> None:
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]])
    with pytest.raises(ValueError, match="all 3 validation images are answered rightly"):
        fit_temperature(logits, torch.tensor([0, 1, 0]))
    with pytest.raises(ValueError, match="no better than equal probabilities"):
        fit_temperature(logits, torch.tensor([1, 0, 0]))
    with pytest.raises(ValueError, match="not finite"):
        fit_temperature(logits / 0, torch.tensor([0, 1, 0]))
    with pytest.raises(ValueError, match="no images"):
        fit_temperature(logits[:0], torch.tensor([], dtype=torch.long))


def test_a_picture(tmp_path: Path) -> None:
    logits, labels = drawn(50)
    figure = plot_reliability({"before": reliability(3 * logits, labels), "after": reliability(logits, labels)})
    figure.savefig(tmp_path / "reliability.png")
    assert figure.axes[0].get_title().startswith("before: ECE 0.")
