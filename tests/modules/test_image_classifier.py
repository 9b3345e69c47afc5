from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from lit_transfer.modules import ImageClassifier, TransferModule

MakeTrainer = Callable[..., Trainer]


def fitted(data: LightningDataModule, trainer: Trainer, **arguments: Any) -> ImageClassifier:
    torch.manual_seed(0)
    module = ImageClassifier("resnet18", weights=None, input_size=32, **arguments)
    trainer.fit(module, data)
    return module


def test_learns_and_logs_its_metrics(data: LightningDataModule, backbone: nn.Module, make_trainer: MakeTrainer) -> None:
    module = ImageClassifier(backbone, optimizer=lambda groups: torch.optim.AdamW(groups, lr=3e-2))
    trainer = make_trainer(max_epochs=10)
    trainer.fit(module, data)
    logged = trainer.validate(module, data, verbose=False)[0]
    assert set(logged) == {"val_loss", "val_acc", "val_f1", "val_auroc", "val_ece"}
    assert logged["val_acc"] > 0.9
    assert module.confusion["val"].sum() == 24
    assert module.confusion["val"].diagonal().sum() == round(24 * logged["val_acc"])


def test_classes_come_from_the_data_and_live_in_the_checkpoint(
    data: LightningDataModule, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    trainer = make_trainer(max_epochs=1)
    module = fitted(data, trainer)
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    hparams = torch.load(tmp_path / "saved.ckpt", weights_only=True)["hyper_parameters"]
    assert hparams["weights"] is None
    assert hparams["input_size"] == 32  # the size that the module was built for, whatever the default weights want
    for loaded in (
        TransferModule.load_from_checkpoint(tmp_path / "saved.ckpt"),
        ImageClassifier.load_from_checkpoint(str(tmp_path / "saved.ckpt"), map_location="cpu"),
    ):
        assert type(loaded) is ImageClassifier
        assert loaded.num_classes == 3
        assert loaded.class_names == ["quadrant0", "quadrant1", "quadrant2"]
        assert loaded.preprocessing == module.preprocessing
        assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in module.state_dict().items())


def test_classes_come_from_a_plain_loader_too(backbone: nn.Module, make_trainer: MakeTrainer) -> None:
    dataset = TensorDataset(torch.zeros(8, 3, 16, 16), torch.arange(8) % 2)
    dataset.classes = ["no", "yes"]  # type: ignore[attr-defined]  # as torchvision's ImageFolder has
    module = ImageClassifier(backbone)
    loader = DataLoader(Subset(dataset, range(8)), batch_size=4)
    make_trainer(max_epochs=1).fit(module, loader, loader)
    assert module.class_names == ["no", "yes"]


def test_data_that_does_not_tell_is_an_error(backbone: nn.Module, make_trainer: MakeTrainer) -> None:
    loader = DataLoader(TensorDataset(torch.zeros(8, 3, 16, 16), torch.arange(8) % 2), batch_size=4)
    with pytest.raises(ValueError, match="num_classes is not given and the data does not tell it"):
        make_trainer().fit(ImageClassifier(backbone), loader, loader)


def test_a_number_of_classes_that_contradicts_the_data(
    data: LightningDataModule, backbone: nn.Module, make_trainer: MakeTrainer
) -> None:
    with pytest.raises(ValueError, match=r"num_classes=5 contradicts the data, which has 3 classes \(quadrant0"):
        make_trainer().fit(ImageClassifier(backbone, num_classes=5), data)
    with pytest.raises(ValueError, match="class_names"):
        make_trainer().fit(ImageClassifier(backbone, class_names=["a", "b", "c"]), data)


def test_other_classes_than_the_checkpoints(
    data: LightningDataModule, make_data: Callable[..., Any], make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    trainer = make_trainer(max_epochs=1)
    fitted(data, trainer)
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    other = make_data()
    other.class_names = ["x", "y", "z"]
    with pytest.raises(ValueError, match=r"class_names \(quadrant0, .*\) contradict"):
        make_trainer().test(ImageClassifier.load_from_checkpoint(tmp_path / "saved.ckpt"), other, verbose=False)


def test_arguments_that_contradict_each_other(backbone: nn.Module) -> None:
    with pytest.raises(ValueError, match="num_classes=3, but class_names has 2 names"):
        ImageClassifier(backbone, num_classes=3, class_names=["a", "b"])
    with pytest.raises(ValueError, match="at least two classes"):
        ImageClassifier(backbone, num_classes=1)
    with pytest.raises(ValueError, match="class_weights has 2 values for 3 classes"):
        ImageClassifier(backbone, num_classes=3, class_weights=[1.0, 2.0])
    with pytest.raises(ValueError, match="backbone's 16 features"):
        ImageClassifier(backbone, num_classes=3, head=nn.Linear(512, 3))


def test_bias_starts_at_the_class_frequencies_unless_the_head_is_trained(
    make_data: Callable[..., Any], make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    still = {"optimizer": lambda groups: torch.optim.SGD(groups, lr=0.0)}
    data = make_data()
    data.class_counts = [1, 2, 5]
    trainer = make_trainer(max_epochs=1)
    module = fitted(data, trainer, **still)
    assert torch.allclose(module.head.bias.softmax(0), torch.tensor([0.125, 0.25, 0.625]))
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "saved.ckpt", **still)
    data.class_counts = [1, 1, 1]
    make_trainer(max_epochs=1).fit(loaded, data)
    assert torch.allclose(loaded.head.bias.softmax(0), torch.tensor([0.125, 0.25, 0.625]))


def test_balanced_weights_come_from_the_data(
    make_data: Callable[..., Any], backbone: nn.Module, make_trainer: MakeTrainer
) -> None:
    data = make_data()
    data.class_counts = [1, 1, 4]
    module = ImageClassifier(backbone, num_classes=3, class_weights="balanced")
    make_trainer(max_epochs=1).fit(module, data)
    assert torch.allclose(module.loss.weight, torch.tensor([2.0, 2.0, 0.5]))
    del data.class_counts
    with pytest.raises(ValueError, match="class_weights='balanced' needs the number of examples"):
        make_trainer().fit(ImageClassifier(backbone, class_weights="balanced"), data)


def test_data_that_is_drawn_balanced_starts_without_a_prior_and_takes_no_balanced_weights(
    make_data: Callable[..., Any], backbone: nn.Module, make_trainer: MakeTrainer
) -> None:
    data = make_data()
    data.class_counts, data.sampling = [1, 1, 4], "balanced"
    module = ImageClassifier(backbone, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.0))
    make_trainer(max_epochs=1).fit(module, data)
    assert (module.head.bias == 0).all()
    with pytest.raises(ValueError, match=r"class_weights='balanced' and data.sampling='balanced' both make rare"):
        make_trainer().fit(ImageClassifier(backbone, class_weights="balanced"), data)


def test_label_smoothing_reaches_the_loss(backbone: nn.Module) -> None:
    assert ImageClassifier(backbone, num_classes=3, label_smoothing=0.1).loss.label_smoothing == 0.1


def test_top_five_with_more_than_five_classes(backbone: nn.Module) -> None:
    module = ImageClassifier(backbone, num_classes=6)
    assert "val_top5" in list(module.val_metrics.keys())  # `in` alone asks for names without the prefix
    module.reset_head(num_classes=5)
    assert "val_top5" not in list(module.val_metrics.keys())


def test_a_new_head_has_new_classes(backbone: nn.Module) -> None:
    module = ImageClassifier(backbone, class_names=["a", "b"])
    module.reset_head(class_names=["x", "y", "z"])
    assert module.num_classes == 3
    assert module(torch.zeros(1, 3, 16, 16)).shape == (1, 3)
    module.reset_head(num_classes=4)
    assert module.class_names is None
    assert module.val_record.num_classes == 4


def test_a_new_head_is_rebuilt_from_its_checkpoint(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    module = ImageClassifier("resnet18", None, class_names=["a", "b"], input_size=32)
    module.reset_head(class_names=["x", "y", "z"], head="mlp")
    trainer = make_trainer()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "saved.ckpt")
    assert loaded.class_names == ["x", "y", "z"]
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in module.state_dict().items())


def test_probabilities_add_up_and_are_named(backbone: nn.Module) -> None:
    module = ImageClassifier(backbone, class_names=["a", "b", "c"]).eval()
    images = torch.rand(4, 3, 16, 16)
    rows = module.predict_step((images, torch.zeros(4)))
    assert torch.equal(rows, module.predict_step(images))
    answer = module.describe_answer(rows[0])
    assert sum(answer.probabilities.values()) == pytest.approx(1)
    assert answer.probability == answer.probabilities[answer.label] == max(answer.probabilities.values())


def test_a_checkpoint_needs_its_first_weights_no_more(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    file = tmp_path / "first.pth"
    torch.save(ImageClassifier("resnet18", weights=None, num_classes=2).backbone.state_dict(), file)
    module = ImageClassifier("resnet18", weights=str(file), num_classes=2)
    trainer = make_trainer()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    file.unlink()
    saved = torch.load(tmp_path / "saved.ckpt", weights_only=True)
    assert saved["hyper_parameters"]["weights"] is None
    assert saved["hyper_parameters"]["input_size"] == 224
    assert saved["lit_transfer"]["weights"] == str(file)
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "saved.ckpt")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in module.state_dict().items())
