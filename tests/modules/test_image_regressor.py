"""Regression in the targets' own units: learning, scale, metrics, answers, checkpoints; CPU, float32."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from lit_transfer import load_predictor
from lit_transfer.modules import ImageRegressor, TransferModule

MakeTrainer = Callable[..., Trainer]
FAST = {"backbone_lr_factor": 1.0, "optimizer": lambda groups: torch.optim.AdamW(groups, lr=2e-2)}
STILL = {"optimizer": lambda groups: torch.optim.SGD(groups, lr=0.0)}


def loader(targets: torch.Tensor, images: int = 8) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.zeros(images, 3, 16, 16), targets), batch_size=4)


@pytest.fixture
def saved(numbers: LightningDataModule, make_trainer: MakeTrainer, tmp_path: Path) -> Path:
    trainer = make_trainer(max_epochs=1)
    trainer.fit(ImageRegressor("resnet18", weights=None, input_size=32), numbers)
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    return tmp_path / "saved.ckpt"


@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
def test_learns_and_measures_in_the_targets_units(
    loss: Any, numbers: Any, backbone: nn.Module, make_trainer: MakeTrainer
) -> None:
    module = ImageRegressor(backbone, loss=loss, **FAST)
    trainer = make_trainer(max_epochs=20)
    trainer.fit(module, numbers)
    logged = trainer.validate(module, numbers, verbose=False)[0]
    assert set(logged) == {"val_loss", "val_mae", "val_r2", "val_mae_brightness", "val_mae_darkness"}
    assert logged["val_r2"] > 0.7
    assert logged["val_mae"] == pytest.approx((logged["val_mae_brightness"] + logged["val_mae_darkness"]) / 2, rel=1e-4)
    answers = module.eval()(numbers.dataset.tensors[0]).detach()
    assert logged["val_mae_brightness"] == pytest.approx((answers - numbers.targets).abs().mean(0)[0].item(), rel=1e-3)
    assert logged["val_mae_brightness"] < 200  # of 250 for the mean alone
    assert logged["val_loss"] < 0.5  # of standardised targets, whose variance is 1


def test_a_fresh_head_answers_the_mean_and_its_loss_is_the_variance(
    numbers: Any, backbone: nn.Module, make_trainer: MakeTrainer
) -> None:
    module, trainer = ImageRegressor(backbone, **STILL), make_trainer(max_epochs=1)
    trainer.fit(module, numbers)
    answers = module.eval()(torch.rand(2, 3, 16, 16))
    torch.testing.assert_close(answers, torch.tensor(numbers.target_mean).expand(2, 2))
    assert trainer.callback_metrics["val_loss"] == pytest.approx(1, rel=1e-4)
    assert trainer.callback_metrics["val_r2"] == pytest.approx(0, abs=1e-4)


def test_targets_and_their_scale_live_in_the_checkpoint(saved: Path, numbers: Any, make_trainer: MakeTrainer) -> None:
    torch.load(saved, weights_only=True)
    for loaded in (TransferModule.load_from_checkpoint(saved), ImageRegressor.load_from_checkpoint(saved)):
        assert type(loaded) is ImageRegressor
        assert loaded.num_targets == 2
        assert loaded.target_names == ["brightness", "darkness"]
        assert loaded.target_mean.tolist() == pytest.approx(numbers.target_mean)
        assert loaded.target_std.tolist() == pytest.approx(numbers.target_std)
    numbers.target_mean, numbers.target_std = [0.0, 0.0], [1.0, 1.0]
    before = loaded.target_mean.clone()
    make_trainer(max_epochs=1).fit(loaded, numbers)
    assert torch.equal(loaded.target_mean, before)  # the trained head speaks in it


def test_an_answer_names_its_values(saved: Path) -> None:
    predictor = load_predictor(saved, "cpu")
    answer = predictor(torch.zeros(3, 40, 40))
    assert list(answer.values) == ["brightness", "darkness"] == predictor.output_names
    assert 4000 < answer.values["brightness"] < 7000
    assert answer.columns() == answer.values
    row = predictor.module(torch.zeros(1, 3, 32, 32))
    assert predictor.module.describe_answer(row[0]).values["darkness"] == row[0, 1].item()


@pytest.mark.parametrize("shape", [(8,), (8, 1)])
def test_a_plain_loader_tells_the_scale_by_its_targets(
    shape: tuple[int, ...], backbone: nn.Module, make_trainer: MakeTrainer
) -> None:
    whole = loader(torch.arange(8).reshape(shape)).dataset
    part = DataLoader(Subset(whole, [0, 2, 4, 6]), batch_size=2)
    module, trainer = ImageRegressor(backbone, num_targets=1), make_trainer(max_epochs=1)
    trainer.fit(module, part, part)
    assert module.target_mean.tolist() == [3]
    assert module.target_std.tolist() == pytest.approx([5**0.5])
    assert {"val_mae", "val_r2"} <= set(trainer.callback_metrics)
    assert not any(name.startswith("val_mae_") for name in trainer.callback_metrics)
    assert module.describe_answer(torch.tensor([7.0])).values == {"0": 7.0}


class Untold(TensorDataset):
    def __init__(self, *tensors: torch.Tensor) -> None:
        self.hidden = tensors

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        return tuple(tensor[index] for tensor in self.hidden)

    def __len__(self) -> int:
        return len(self.hidden[0])


def test_a_scale_that_nobody_tells_is_left_out_and_told(backbone: nn.Module, make_trainer: MakeTrainer) -> None:
    data = DataLoader(Untold(torch.zeros(8, 3, 16, 16), torch.arange(8.0)), batch_size=4)
    module = ImageRegressor(backbone, target_names=["age"])
    with pytest.warns(UserWarning, match=r"does not tell mean and standard deviation.*target_mean=\[...\]"):
        make_trainer(max_epochs=1).fit(module, data, data)
    assert (module.target_mean.tolist(), module.target_std.tolist()) == ([0], [1])
    module = ImageRegressor(backbone, target_names=["age"], target_mean=[3.5], target_std=[2.0])
    make_trainer(max_epochs=1).fit(module, data, data)
    assert (module.target_mean.tolist(), module.target_std.tolist()) == ([3.5], [2])


def test_one_value_in_all_images_is_learned_as_it_is(backbone: nn.Module, make_trainer: MakeTrainer) -> None:
    module, data = ImageRegressor(backbone, num_targets=1, **STILL), loader(torch.full((8,), 7.0))
    make_trainer(max_epochs=1).fit(module, data, data)
    assert (module.target_mean.tolist(), module.target_std.tolist()) == ([7], [1])


def test_r2_knows_small_and_far_away_targets(backbone: nn.Module, make_trainer: MakeTrainer) -> None:
    """torchmetrics' own R2 is 0 for the first and noise for the second."""
    targets = torch.stack([1e-6 * torch.arange(8.0), 1e4 + torch.arange(8.0)], dim=1)
    module = ImageRegressor(backbone, num_targets=2, **STILL)
    make_trainer(max_epochs=1).fit(module, loader(targets), loader(targets))
    off = targets + torch.tensor([2e-6, 2.0])
    assert module._r2(torch.stack([off, targets])).tolist() == pytest.approx([1 - 4 / 5.25] * 2, abs=1e-2)


def test_a_single_image_has_no_r2(backbone: nn.Module, make_trainer: MakeTrainer) -> None:
    trainer, data = make_trainer(max_epochs=1), loader(torch.arange(8.0))
    module = ImageRegressor(backbone, num_targets=1)
    trainer.fit(module, data, loader(torch.zeros(1), images=1))
    assert "val_mae" in trainer.callback_metrics
    assert "val_r2" not in trainer.callback_metrics
    assert module.figures("val")


def test_data_that_contradicts(numbers: Any, backbone: nn.Module, make_trainer: MakeTrainer) -> None:
    with pytest.raises(ValueError, match=r"num_targets=3 contradicts the data, which has 2 targets \(brightness"):
        make_trainer().fit(ImageRegressor(backbone, num_targets=3), numbers)
    with pytest.raises(ValueError, match=r"target_names \(a, b\) contradict the data's targets"):
        make_trainer().fit(ImageRegressor(backbone, target_names=["a", "b"]), numbers)
    with pytest.raises(ValueError, match=r"num_targets is not given and the data does not tell it \(target_names\)"):
        make_trainer().fit(ImageRegressor(backbone), loader(torch.zeros(8)), loader(torch.zeros(8)))
    numbers.target_names = ["path", "darkness"]
    with pytest.raises(ValueError, match="a target is named 'path'"):
        make_trainer().fit(ImageRegressor(backbone), numbers)
    numbers.target_names = ["brightness", "darkness"]
    numbers.target_mean = [1.0]
    with pytest.raises(ValueError, match="target_mean has 1 values for 2 targets"):
        make_trainer().fit(ImageRegressor(backbone), numbers)
    module = ImageRegressor(backbone, num_targets=2, target_mean=[0, 0], target_std=[1, 1])
    with pytest.raises(ValueError, match=r"shape \(4, 3\), and ImageRegressor has 2 targets"):
        make_trainer().fit(module, loader(torch.zeros(8, 3)), loader(torch.zeros(8, 3)))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"num_targets": 2, "target_names": ["a"]}, "num_targets=2, but target_names has 1 names"),
        ({"num_targets": 0}, "needs at least one target"),
        ({"target_names": ["a", "a"]}, "target_names has a name twice"),
        ({"target_names": ["age", "path"]}, "named 'path'.*rename it"),
        ({"target_mean": [1.0]}, "target_mean and target_std belong together"),
        ({"num_targets": 1, "target_mean": [1.0], "target_std": [0.0]}, "target_std above 0"),
        ({"num_targets": 2, "target_mean": [1.0], "target_std": [1.0]}, "target_mean has 1 values for 2 targets"),
        ({"num_targets": 1, "loss": "mes"}, "loss='mes' is unknown"),
        ({"num_targets": 3, "head": nn.Linear(16, 2)}, "head gives 2 outputs where 3 are needed"),
    ],
)
def test_arguments_that_contradict_each_other(backbone: nn.Module, arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ImageRegressor(backbone, **arguments)


def test_a_new_head_has_new_targets_also_after_loading(saved: Path, make_trainer: MakeTrainer, tmp_path: Path) -> None:
    module = ImageRegressor("resnet18", None, num_targets=2, target_mean=[1, 2], target_std=[3, 4], input_size=32)
    module.reset_head(target_names=["age"], head="mlp")
    data = loader(torch.arange(8.0))
    trainer = make_trainer(max_epochs=1)
    trainer.fit(module, data, data)
    assert module.target_mean.tolist() == [3.5]
    trainer.save_checkpoint(tmp_path / "new.ckpt")
    loaded = ImageRegressor.load_from_checkpoint(tmp_path / "new.ckpt")
    assert loaded.target_names == ["age"]
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in module.state_dict().items())


def test_the_scatter_has_a_square_for_each_target(numbers: Any, backbone: nn.Module, make_trainer: MakeTrainer) -> None:
    module = ImageRegressor(backbone)
    assert module.figures("val") == {}
    make_trainer(max_epochs=1).fit(module, numbers)
    squares = module.figures("val")["scatter"].axes
    assert [axes.get_title().splitlines()[0] for axes in squares] == ["brightness", "darkness"]
    for axes, true in zip(squares, numbers.targets.T, strict=True):
        assert axes.collections[0].get_offsets()[:, 0].tolist() == pytest.approx(true.tolist())
    assert "R2" in squares[0].get_title()
