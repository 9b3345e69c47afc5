"""What EMA validates is what its checkpoints hold and every reader takes; what is frozen stays bit for bit."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from foreign_module import Batches, Foreign, batch, trainer, val_loader
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import squeezenet1_1

from lit_transfer import load_predictor, load_weights
from lit_transfer.callbacks import EMA, FeatureCaching, FinetuningSchedule, TolerantRestore
from lit_transfer.modules import ImageClassifier


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


class Noted(Callback):
    """The weights after each step, and those that are validated."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self.validated: list[dict[str, Any]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start = copy.deepcopy(pl_module.state_dict())

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.steps.append(copy.deepcopy(pl_module.state_dict()))

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.validated.append(copy.deepcopy(pl_module.state_dict()))


def test_the_average_is_that_of_the_formula_and_is_what_is_validated_and_left() -> None:
    noted, module = Noted(), Foreign()
    trainer(EMA(0.5), noted, max_epochs=2, num_sanity_val_steps=0).fit(module, Batches(), val_loader())
    expected = {name: value.double() for name, value in noted.steps[0].items()}  # the average begins with these
    for number, step in enumerate(noted.steps[1:], 1):
        kept = min(0.5, (1 + number) / (10 + number))
        expected = {name: kept * value + (1 - kept) * step[name] for name, value in expected.items()}
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-4, atol=1e-6)
        else:
            assert value == noted.steps[-1][name] == 8  # batches are counted, not averaged
    assert equal(noted.validated[-1], module.state_dict())
    assert not equal(noted.validated[-1], noted.steps[-1])


def test_the_best_checkpoint_has_what_was_validated_for_every_reader(tmp_path: Path) -> None:
    """A classifier whose head the data tells, as on the command line; float32, CPU."""
    images, labels = batch(3, 8)[0].repeat(1, 1, 4, 4), torch.arange(8) % 2
    data = DataLoader(TensorDataset(images, labels), 4)
    data.dataset.classes = ["a", "b"]
    noted, best = Noted(), ModelCheckpoint(tmp_path, monitor="val_loss")
    module = ImageClassifier("squeezenet1_1", None, input_size=32)
    made = trainer(
        EMA(0.9), TolerantRestore(), noted, best, max_epochs=2, num_sanity_val_steps=0, enable_checkpointing=True
    )
    made.fit(module, data, data)
    epoch = torch.load(best.best_model_path, weights_only=True)["epoch"]
    validated = noted.validated[2 * epoch]
    assert equal(ImageClassifier.load_from_checkpoint(best.best_model_path).state_dict(), validated)
    assert equal(load_predictor(best.best_model_path, "cpu").module.state_dict(), validated)
    upstream = squeezenet1_1(num_classes=2)
    load_weights(upstream, best.best_model_path)
    assert torch.equal(upstream.features[0].weight, validated["backbone.features.0.weight"])
    made.test(module, data, ckpt_path=best.best_model_path, verbose=False, weights_only=True)
    assert equal(module.state_dict(), validated)
    made.validate(module, data, ckpt_path=best.best_model_path, verbose=False, weights_only=True)
    assert equal(noted.validated[-1], validated)


def test_what_is_frozen_stays_bitwise_and_follows_when_it_trains() -> None:
    phases: list[Any] = [{"train": "head"}, {"at": {"epoch": 1}, "train": "all"}]
    noted, module = Noted(), Foreign()
    made = trainer(EMA(0.9), FinetuningSchedule(phases), noted, max_epochs=2, num_sanity_val_steps=0)
    made.fit(module, Batches(), val_loader())
    frozen = [name for name in noted.start if name.startswith("encoder")]
    assert all(torch.equal(noted.validated[0][name], noted.start[name]) for name in frozen)
    assert not any(torch.equal(noted.validated[1][name], noted.start[name]) for name in frozen)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_resumed_run_ends_bitwise_like_a_whole_one(tmp_path: Path) -> None:
    ends, saves = [], ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    for epochs, path in ((2, None), (3, None), (3, tmp_path / "epoch=1.ckpt")):
        module = Foreign()
        callbacks = [EMA(0.9), TolerantRestore(), *([saves] if epochs == 2 else [])]
        options = {"enable_checkpointing": True} if epochs == 2 else {}
        made = trainer(*callbacks, max_epochs=epochs, **options)
        made.fit(module, Batches(), val_loader(), ckpt_path=path, weights_only=True)
        ends.append(module.state_dict())
    assert equal(ends[1], ends[2])
    with pytest.raises(ValueError, match=r"weights are an average.*--ema"):
        trainer(TolerantRestore()).fit(
            Foreign(), Batches(), val_loader(), ckpt_path=tmp_path / "epoch=1.ckpt", weights_only=True
        )


def test_beside_feature_caching(tmp_path: Path) -> None:
    ends = []
    for caching in ([], [FeatureCaching("encoder", folder=tmp_path, fast=False)]):
        images, labels = batch(0)
        data = DataLoader(TensorDataset(images, labels), 4)
        module = Foreign(dropout=0.0)
        trainer(EMA(0.9), FinetuningSchedule("linear_probe"), *caching).fit(module, data, data)
        ends.append(module.state_dict())
    assert equal(*ends)


def test_features_of_what_has_trained_before_are_refused(tmp_path: Path) -> None:
    phases: list[Any] = [{"train": "all"}, {"at": {"epoch": 1}, "train": "head"}]
    images, labels = batch(0)
    data = DataLoader(TensorDataset(images, labels), 4)
    caching = FeatureCaching("encoder", folder=tmp_path, fast=False)
    with pytest.raises(ValueError, match="has trained and is frozen by now"):
        trainer(EMA(0.9), FinetuningSchedule(phases), caching, max_epochs=3).fit(Foreign(), data, data)


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="decay must be a number from 0 to below 1, got 1"):
        EMA(1.0)
    with pytest.raises(TypeError, match="one device and with strategy='ddp'"):
        EMA().setup(SimpleNamespace(strategy=object()), Foreign(), "fit")  # type: ignore[arg-type]
    data = DataLoader(TensorDataset(torch.rand(4, 3, 32, 32), torch.arange(4) % 2), 4)
    data.dataset.classes = ["a", "b"]
    module = ImageClassifier("squeezenet1_1", None, input_size=32)
    with pytest.raises(ValueError, match=r"EMAWeightAveraging has copied the module before.*callbacks\.EMA"):
        trainer(EMAWeightAveraging()).fit(module, data, data)


def test_the_loss_that_is_logged_is_the_averages() -> None:
    module = Foreign()
    made = trainer(EMA(0.9), num_sanity_val_steps=0)
    made.fit(module, Batches(), val_loader())
    module.eval()
    images, labels = batch(99)
    assert made.callback_metrics["val_loss"] == pytest.approx(F.cross_entropy(module(images), labels).item(), rel=1e-5)
