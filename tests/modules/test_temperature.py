"""A temperature changes probabilities and nothing else, is saved with the module, and ends with its weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import nn

from lit_transfer import load_predictor
from lit_transfer.modules import ImageClassifier

MakeTrainer = Callable[..., Trainer]


def small(**arguments: object) -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier("squeezenet1_1", weights=None, class_names=["a", "b", "c"], input_size=32, **arguments)


def test_probabilities_follow_it_and_answers_stay(backbone: nn.Module) -> None:
    module = ImageClassifier(backbone, num_classes=3).eval()
    images = torch.rand(4, 3, 16, 16)
    logits = module(images)
    assert torch.equal(module.predict_step(images), logits.softmax(-1))
    module.temperature.fill_(2.0)
    assert torch.allclose(module.predict_step(images), (logits / 2).softmax(-1))
    assert torch.equal(module(images), logits)
    assert "temperature" not in module.state_dict()


def test_the_logged_calibration_error_is_that_of_the_answers(
    data: LightningDataModule, backbone: nn.Module, make_trainer: MakeTrainer
) -> None:
    module = ImageClassifier(backbone, num_classes=3)
    with torch.no_grad():
        module.head.weight.normal_(std=10)
    trainer = make_trainer()
    before = trainer.validate(module, data, verbose=False)[0]
    module.temperature.fill_(1e9)
    after = trainer.validate(module, data, verbose=False)[0]
    assert after["val_ece"] == pytest.approx(abs(after["val_acc"] - 1 / 3), abs=1e-4)
    assert after["val_ece"] != before["val_ece"]
    assert (after["val_acc"], after["val_loss"]) == (before["val_acc"], before["val_loss"])


def test_it_is_saved_and_a_checkpoint_of_before_has_none(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    module, trainer, path = small().eval(), make_trainer(), tmp_path / "saved.ckpt"
    module.temperature.fill_(2.5)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    images = torch.rand(2, 3, 32, 32)
    rows = module.predict_step(images).detach()
    for loaded in (
        ImageClassifier.load_from_checkpoint(path).eval(),
        load_predictor(path, "cpu").module,
        load_predictor(path, "cpu", module=small()).module,
    ):
        assert torch.allclose(loaded.predict_step(images), rows, rtol=0, atol=1e-6)
    old = torch.load(path, weights_only=True)
    del old["lit_transfer"]["temperature"]
    torch.save(old, path)
    assert ImageClassifier.load_from_checkpoint(path).temperature == 1


def test_it_ends_with_the_weights_that_it_was_fitted_for(
    data: LightningDataModule, backbone: nn.Module, make_trainer: MakeTrainer
) -> None:
    module = ImageClassifier(backbone, num_classes=3)
    module.temperature.fill_(2.0)
    make_trainer(max_epochs=1).fit(module, data)
    assert module.temperature == 1
    module.temperature.fill_(2.0)
    make_trainer().validate(module, data, verbose=False)
    assert module.temperature == 2
    module = ImageClassifier(backbone, num_classes=3)
    module.temperature.fill_(2.0)
    module.reset_head(num_classes=2)
    assert module.temperature == 1


def test_answers_of_folds_are_measured_as_probabilities() -> None:
    """As `predict_step` gives them: a second softmax would make 0.9 sure answers of 0.99 ones."""
    module = ImageClassifier("squeezenet1_1", weights=None, num_classes=2, input_size=32)
    outputs = torch.tensor([[0.99, 0.01]] * 9 + [[0.01, 0.99]] * 2)  # the last but one is wrong
    found = module.measure(outputs, torch.tensor([0] * 10 + [1]))
    assert found["acc"] == pytest.approx(10 / 11)
    assert found["ece"] == pytest.approx(0.99 - 10 / 11, abs=1e-4)
