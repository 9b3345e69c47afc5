import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, Metric

from lit_transfer import load_weights
from lit_transfer.callbacks import FinetuningSchedule
from lit_transfer.modules import ImageClassifier, TransferModule

MakeTrainer = Callable[..., Trainer]


class QuadrantRegressor(TransferModule):
    """A module outside the package: its own head, loss, metric and step."""

    def configure_head(self) -> nn.Module:
        return nn.Linear(self.backbone.num_features, 1)

    def configure_loss(self) -> nn.Module:
        return nn.SmoothL1Loss()

    def configure_metrics(self) -> dict[str, Metric]:
        return {"mae": MeanAbsoluteError()}

    def step(self, batch: Any, stage: str) -> Tensor:
        images, numbers = batch
        answer = self(images).squeeze(1)
        self.update_metrics(stage, answer, numbers.float())
        return self.loss(answer, numbers.float())


class Fixed(QuadrantRegressor):
    """Fixes an argument of its parent and adds one of its own."""

    def __init__(self, sharpness: float = 1.0, **arguments: Any) -> None:
        super().__init__("resnet18", dropout=0.25, **arguments)
        self.sharpness = sharpness


class TwoOutputs(TransferModule):
    def __init__(self, backbone: str | nn.Module = "resnet18", **arguments: Any) -> None:
        super().__init__(backbone, num_outputs=2, **arguments)

    def configure_loss(self) -> nn.Module:
        return nn.MSELoss()


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_subclass_trains_with_its_own_loss_and_metric(
    data: LightningDataModule, backbone: nn.Module, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer(max_epochs=8)
    module = QuadrantRegressor(
        backbone, backbone_lr_factor=1.0, optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-2)
    )
    first = trainer.validate(module, data, verbose=False)[0]
    trainer.fit(module, data)
    assert "train_loss" in trainer.callback_metrics
    last = trainer.validate(module, data, verbose=False)[0]
    assert set(last) == {"val_loss", "val_mae"}
    assert last["val_mae"] < 0.8 * first["val_mae"]


def test_a_base_without_a_loss_says_what_to_define(backbone: nn.Module) -> None:
    with pytest.raises(NotImplementedError, match="TransferModule must define configure_loss"):
        TransferModule(backbone, num_outputs=3)


def test_every_parameter_is_in_one_stage_and_one_group(backbone: nn.Module) -> None:
    module = TwoOutputs(backbone=backbone)
    staged = [name for stage in module.stages for name in stage.parameters]
    assert sorted(staged) == sorted(name for name, _ in module.named_parameters())
    assert module.stages[-1].name == "head"
    optimizer = module.configure_optimizers()
    owned = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(owned) == sorted(id(parameter) for parameter in module.parameters())


def test_the_optimizers_rate_is_the_heads(backbone: nn.Module) -> None:
    module = TwoOutputs(
        backbone=backbone,
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.5, weight_decay=0.01),
        backbone_lr_factor=0.1,
    )
    rates = {group["name"].split(".")[0]: group["lr"] for group in module.configure_optimizers().param_groups}
    assert rates.pop("head") == 0.5
    assert set(rates.values()) == {0.05}


def test_a_backbone_rate_of_zero_leaves_its_weights(
    data: LightningDataModule, backbone: nn.Module, make_trainer: MakeTrainer
) -> None:
    module = QuadrantRegressor(backbone, backbone_lr_factor=0)
    before = {name: p.detach().clone() for name, p in module.backbone.named_parameters()}
    make_trainer().fit(module, data)
    assert all(torch.equal(p, before[name]) for name, p in module.backbone.named_parameters())


def test_own_scheduler_is_used(data: LightningDataModule, backbone: nn.Module, make_trainer: MakeTrainer) -> None:
    module = QuadrantRegressor(
        backbone, lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    )
    trainer = make_trainer()
    trainer.fit(module, data)
    assert isinstance(trainer.lr_scheduler_configs[0].scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)


def test_default_schedule_ends_at_zero_over_the_runs_own_steps(
    data: LightningDataModule, backbone: nn.Module, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer(max_epochs=3)
    trainer.fit(QuadrantRegressor(backbone), data)
    assert trainer.global_step == 9
    assert all(group["lr"] == pytest.approx(0, abs=1e-9) for group in trainer.optimizers[0].param_groups)


@pytest.mark.parametrize("made", [lambda: Fixed(sharpness=2.0, weights=None), lambda: TwoOutputs(weights=None)])
def test_the_base_class_loads_the_class_that_was_saved(
    made: Callable[[], TransferModule], data: LightningDataModule, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    module = made()
    trainer = make_trainer()
    trainer.strategy.connect(module)
    module._build()
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    loaded = TransferModule.load_from_checkpoint(tmp_path / "saved.ckpt")
    assert type(loaded) is type(module)
    assert getattr(loaded, "sharpness", None) == getattr(module, "sharpness", None)
    assert same(state(loaded), state(module))


def test_an_unrelated_class_is_refused(data: LightningDataModule, make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer()
    trainer.strategy.connect(TwoOutputs(weights=None))
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    with pytest.raises(TypeError, match=r"holds a .*TwoOutputs, which is no ImageClassifier"):
        ImageClassifier.load_from_checkpoint(tmp_path / "saved.ckpt")


def test_a_backbone_given_as_a_module_is_given_again(
    data: LightningDataModule, backbone: nn.Module, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    module = QuadrantRegressor(backbone)
    trainer = make_trainer(max_epochs=1)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    torch.load(tmp_path / "saved.ckpt", weights_only=True)
    loaded = QuadrantRegressor.load_from_checkpoint(tmp_path / "saved.ckpt", backbone=backbone)
    assert same(state(loaded), state(module))


def test_a_fit_that_lost_its_schedule_is_refused_and_any_other_use_of_its_checkpoint_is_not(
    data: LightningDataModule, backbone: nn.Module, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    trainer = make_trainer(max_epochs=1, callbacks=[FinetuningSchedule("linear_probe")])
    trainer.fit(QuadrantRegressor(backbone), data)
    trainer.save_checkpoint(saved := tmp_path / "saved.ckpt")
    QuadrantRegressor.load_from_checkpoint(saved, backbone=backbone)
    with pytest.warns(UserWarning, match="Please add the following callbacks:.*FinetuningSchedule"):
        make_trainer().validate(QuadrantRegressor(backbone), data, ckpt_path=saved, weights_only=True)
    with pytest.raises(ValueError, match="this run has none"):
        make_trainer().fit(QuadrantRegressor(backbone), data, ckpt_path=saved, weights_only=True)
    make_trainer(callbacks=[FinetuningSchedule("full")]).fit(
        QuadrantRegressor(backbone), data, ckpt_path=saved, weights_only=True
    )


class AfterSanityCheck(Callback):
    """Keeps what had been logged when the sanity check was over."""

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.logged = set(trainer.callback_metrics)


def test_the_sanity_check_measures_nothing(
    data: LightningDataModule, backbone: nn.Module, make_trainer: MakeTrainer
) -> None:
    seen = AfterSanityCheck()
    trainer = make_trainer(max_epochs=1, num_sanity_val_steps=1, callbacks=[seen])
    trainer.fit(ImageClassifier(backbone), data)
    assert seen.logged == {"val_loss"}
    assert {"val_loss", "val_acc"} <= set(trainer.callback_metrics)


def test_convolutions_stay_in_the_layout_that_was_asked_for(
    data: LightningDataModule, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    def layouts(module: LightningModule) -> set[bool]:
        weights = [
            part.weight for part in module.modules() if isinstance(part, nn.Conv2d) and part.kernel_size != (1, 1)
        ]
        return {weight.is_contiguous(memory_format=torch.channels_last) for weight in weights}

    for channels_last in (True, False):
        module = TwoOutputs("resnet18", weights=None, channels_last=channels_last)
        trainer = make_trainer(max_steps=1)
        trainer.fit(ImageClassifier("resnet18", weights=None, channels_last=channels_last), data)
        trainer.save_checkpoint(tmp_path / "model.ckpt")
        again = ImageClassifier.load_from_checkpoint(tmp_path / "model.ckpt")
        load_weights(module, tmp_path / "model.ckpt", head=["head"], on_mismatch="skip")
        assert [layouts(one) for one in (module, trainer.lightning_module, again)] == [{channels_last}] * 3


def test_a_compiled_backbone_keeps_its_names_and_learns_the_same(
    data: LightningDataModule, backbone: nn.Module, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The graph is captured as ever and run without generated code, which would take a minute.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    trained = []
    for compiled in (False, True):
        torch.manual_seed(0)
        module = ImageClassifier(copy.deepcopy(backbone), compile=compiled)
        make_trainer(max_epochs=2, callbacks=[FinetuningSchedule("probe_then_finetune")]).fit(module, data)
        assert (module.backbone._compiled_call_impl is not None) == compiled
        trained.append(state(module))
    assert trained[0].keys() == trained[1].keys()
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name], value)


def test_resetting_the_head_leaves_the_backbone(backbone: nn.Module) -> None:
    module = TwoOutputs(weights=None).eval()
    before = state(module.backbone)
    module.reset_head(num_outputs=5, head="mlp")
    assert module(torch.zeros(2, 3, 64, 64)).shape == (2, 5)
    assert same(state(module.backbone), before)


def test_resetting_the_head_comes_too_late_once_optimizers_exist(
    data: LightningDataModule, backbone: nn.Module, make_trainer: MakeTrainer
) -> None:
    module = QuadrantRegressor(backbone)
    make_trainer(max_epochs=1).fit(module, data)
    head = module.head
    with pytest.raises(RuntimeError, match="reset_head comes too late"):
        module.reset_head(num_outputs=4)
    assert module.head is head
