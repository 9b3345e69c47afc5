"""The schedule holds in real fits: what trains when, for any module, and through the whole life of a trainer."""

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from foreign_module import Batches, Foreign, batch, trainer, val_loader
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

from lit_transfer import create_backbone, frozen_names
from lit_transfer.callbacks import FinetuningSchedule, WeightLoading
from lit_transfer.modules import ImageClassifier


class Record(Callback):
    """What trained in each step, and whether the frozen part was as in eval mode."""

    def __init__(self) -> None:
        self.trained: dict[int, list[str]] = {}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        parts = {
            name.split(".")[0] if name.startswith("cl") else name[:9]
            for name, p in pl_module.named_parameters()
            if p.grad is not None
        }
        self.trained[trainer.global_step] = sorted(parts)


def fit(module: LightningModule, *callbacks: Callback, **options: Any) -> Trainer:
    made = trainer(*callbacks, **options)
    made.fit(module, Batches(), val_loader())
    return made


def test_phases_by_epoch_train_what_they_name_and_nothing_else() -> None:
    record, module = Record(), Foreign()
    before = copy.deepcopy(module.state_dict())
    phases = [
        {"train": ["head"]},
        {"at": {"epoch": 1}, "train": ["head", "encoder.2"]},
        {"at": {"epoch": 2}, "train": "encoder.1"},
    ]
    fit(module, FinetuningSchedule(phases), record)
    assert [record.trained[step] for step in (0, 3, 4, 7, 8, 11)] == [
        ["classifier"],
        ["classifier"],
        ["classifier", "encoder.2"],
        ["classifier", "encoder.2"],
        ["encoder.1"],
        ["encoder.1"],
    ]
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("encoder.0"), name


def test_linear_probe_leaves_the_backbone_bitwise_and_full_trains_all() -> None:
    module = Foreign()
    before = copy.deepcopy(module.encoder.state_dict())
    fit(module, FinetuningSchedule("linear_probe"))
    assert all(torch.equal(value, before[name]) for name, value in module.encoder.state_dict().items())
    fit(module, FinetuningSchedule("full"))
    assert not any(torch.equal(value, before[name]) for name, value in module.encoder.state_dict().items())
    assert frozen_names(module) == ()


def test_features_of_the_frozen_part_are_equal_bit_for_bit_in_training_and_eval_over_epochs_with_validation() -> None:
    images = batch(0)[0]
    module = Foreign()
    with torch.no_grad():
        expected = module.eval().encoder(images)
    module.train()

    class Look(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            assert pl_module.training
            assert torch.equal(pl_module.encoder(images), expected)

    fit(module, FinetuningSchedule("linear_probe"), Look(), val_check_interval=2)


def test_test_validate_predict_and_a_second_fit_leave_trainability_as_they_found_it() -> None:
    module = Foreign()
    phases = [{"train": ["head"]}, {"at": {"epoch": 1}, "train": ["encoder.1", "head"]}]
    made = fit(module, FinetuningSchedule(phases), max_epochs=2)
    frozen = frozen_names(module)
    assert {name[:9] for name in frozen} == {"encoder.0", "encoder.2"}
    for run in (made.test, made.validate, made.predict):
        run(module, val_loader(), **({} if run == made.predict else {"verbose": False}))
        assert frozen_names(module) == frozen
    before = copy.deepcopy(module.encoder[1].state_dict())
    made.fit_loop.max_epochs = 3
    made.fit(module, Batches(), val_loader())
    assert frozen_names(module) == frozen
    assert not torch.equal(module.encoder[1][0].weight, before["0.weight"])


def test_an_optimizer_that_lacks_what_will_train_is_refused_with_what_to_write() -> None:
    class Filtered(Foreign):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)

    with pytest.raises(
        ValueError, match=r"encoder\.0\.0\.weight.* and 5 more will train, but no optimizer.*param_groups\(self"
    ):
        fit(Filtered(), FinetuningSchedule([{"train": "head"}, {"at": {"epoch": 1}, "train": "all"}]))
    fit(Filtered(), FinetuningSchedule("linear_probe"), max_epochs=1)


def test_a_head_that_is_built_in_the_modules_setup_is_found() -> None:
    class Late(Foreign):
        def __init__(self) -> None:
            super().__init__()
            self.made, self.classifier = self.classifier, None
            del self._modules["made"]
            object.__setattr__(self, "made", torch.nn.Linear(10, 3))

        def setup(self, stage: str) -> None:
            self.classifier = self.made

    module = Late()
    fit(module, FinetuningSchedule([{"train": ["classifier"]}, {"at": {"epoch": 1}, "train": ["classifier.bias"]}]))
    assert [name for name, p in module.named_parameters() if p.requires_grad] == ["classifier.bias"]


def test_a_name_that_nothing_has_is_refused_before_training() -> None:
    with pytest.raises(ValueError, match=r"'encoder\.9' matches no parameter"):
        fit(Foreign(), FinetuningSchedule([{"train": "head"}, {"at": {"epoch": 1}, "train": "encoder.9"}]))


def test_a_phase_beyond_the_run_is_told_before_training() -> None:
    with pytest.warns(UserWarning, match="Phase 2 is never reached"):
        fit(Foreign(), FinetuningSchedule([{"train": "head"}, {"at": {"epoch": 3}, "train": "all"}]))


def test_phases_by_step_and_fraction_keep_to_whole_windows_of_accumulation() -> None:
    record = Record()
    phases = [
        {"train": "head"},
        {"at": {"step": 1}, "train": "encoder.2"},
        {"at": {"fraction": 0.5}, "train": "encoder.1"},
    ]
    fit(Foreign(), FinetuningSchedule(phases), record, accumulate_grad_batches=2)
    assert [record.trained[step][0] for step in range(6)] == ["classifier", *["encoder.2"] * 2, *["encoder.1"] * 3]


def test_other_code_that_wakes_the_frozen_part_is_put_right_at_the_next_epoch() -> None:
    class Waker(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
            for part in pl_module.modules():
                part.training = True
            pl_module.requires_grad_(True)

    record = Record()
    fit(Foreign(), FinetuningSchedule("linear_probe"), Waker(), record)
    assert {tuple(parts) for parts in record.trained.values()} == {("classifier",)}


def test_phases_come_from_yaml_and_a_misspelt_key_is_refused_by_name() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(FinetuningSchedule, "schedule")
    phases = [{"train": ["head"]}, {"at": {"epoch": 1}, "when": {"plateau": "val_loss"}, "train": "all", "warmup": 2}]
    for given in (phases, "gradual", {"preset": "freeze_first_k", "k": 2}):
        config = parser.parse_object({"schedule": {"phases": given}})
        assert config.schedule.phases == given
        FinetuningSchedule(config.schedule.phases)
    for wrong in (
        [{"tran": ["head"]}],
        [{"train": "all", "at": {"epok": 1}}],
        {"preset": "gradual", "evry": {"epoch": 1}},
    ):
        with pytest.raises(ArgumentError, match=r"tran|epok|evry"):
            parser.parse_object({"schedule": {"phases": wrong}})


def test_a_timm_model_inside_a_users_module_is_scheduled_by_its_stages() -> None:
    class WithTimm(Foreign):
        def __init__(self) -> None:
            super().__init__()
            self.example_input_array = torch.zeros(2, 3, 32, 32)
            self.encoder = timm.create_model("resnet10t", num_classes=0)
            self.classifier = torch.nn.Linear(self.encoder.num_features, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.classifier(self.encoder(x))

    module = WithTimm()
    before = copy.deepcopy(module.state_dict())
    fit(module, FinetuningSchedule([{"train": "head"}, {"at": {"epoch": 1}, "top": 1}]), max_epochs=2)
    moved = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert {name.split(".")[0] if name.startswith("classifier") else name[:14] for name in moved} == {
        "classifier",
        "encoder.layer4",
    }


def test_modules_that_are_replaced_after_setup_are_frozen_as_well() -> None:
    class Converts(Callback):
        def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
            torch.nn.SyncBatchNorm.convert_sync_batchnorm(pl_module)

    module = Foreign()
    before = copy.deepcopy(module.encoder[0].state_dict())
    phases = [{"train": "head"}, {"at": {"epoch": 1}, "train": ["head", "encoder.1.1"]}]
    schedule = FinetuningSchedule(phases)
    made = trainer(Converts(), schedule, max_epochs=1)
    with pytest.warns(UserWarning, match="Phase 2 is never reached"):
        made.fit(module, Batches(), val_loader())
    assert isinstance(module.encoder[0][1], torch.nn.SyncBatchNorm)
    assert all(torch.equal(value, before[name]) for name, value in module.encoder[0].state_dict().items())
    schedule._run.apply(module, 1)
    assert module.encoder[1][1].weight.requires_grad


def test_from_scratch_refuses_weights_of_a_backbone_under_any_name_and_of_a_callback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class WithBackbone(Foreign):
        def __init__(self, weights: str | None) -> None:
            super().__init__()
            self.encoder = create_backbone(self.encoder, weights=weights, classifier=None, input_size=8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.classifier(self.encoder(x))

    saved = tmp_path / "encoder.pth"
    torch.save(Foreign().encoder.state_dict(), saved)
    with pytest.raises(ValueError, match=r"encoder has .*encoder\.pth.*weights=None"):
        fit(WithBackbone(str(saved)), FinetuningSchedule("from_scratch"))
    with pytest.raises(ValueError, match=r"WeightLoading loads .*encoder\.pth.*leave one"):
        fit(Foreign(), FinetuningSchedule({"preset": "from_scratch"}), WeightLoading(saved, target="encoder"))
    told: list[str] = []
    monkeypatch.setattr("lit_transfer.callbacks._refusals.rank_zero_info", told.append)
    module = WithBackbone(None)
    fit(module, FinetuningSchedule("from_scratch"), max_epochs=1)
    assert frozen_names(module) == ()
    assert "the weights that WithBackbone has" in told[0]


def test_a_transfer_module_whose_head_waits_for_the_data_is_scheduled() -> None:
    class Classes(LightningDataModule):
        class_names = ("a", "b", "c")
        num_classes = 3
        class_counts = (1, 1, 1)

        def train_dataloader(self) -> Any:
            return DataLoader(TensorDataset(torch.randn(6, 3, 64, 64), torch.arange(6) % 3), 3)

        val_dataloader = train_dataloader

    module = ImageClassifier("squeezenet1_1", weights=None, input_size=64)
    module.backbone.weights = "IMAGENET1K_V1"
    with pytest.raises(ValueError, match=r"backbone has 'IMAGENET1K_V1'.*weights=None.*'full'"):
        trainer(FinetuningSchedule("from_scratch")).fit(module, datamodule=Classes())
    module.backbone.weights = None
    made = trainer(FinetuningSchedule([{"train": "head"}, {"at": {"step": 1}, "top": 1}]), max_epochs=1)
    made.fit(module, datamodule=Classes())
    assert {name.split(".")[0] for name in frozen_names(module)} == {"backbone"}
    assert all(p.requires_grad for p in module.head.parameters())
    assert any(p.requires_grad for p in module.backbone.parameters())


def test_stages_that_no_phase_trains_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("lit_transfer.callbacks.finetuning_schedule.rank_zero_info", told.append)
    fit(Foreign(), FinetuningSchedule({"preset": "freeze_first_k", "k": 2}), max_epochs=1)
    assert told[0] == "FinetuningSchedule: stem, stage1 stay frozen in every phase."
    assert told[1] == "FinetuningSchedule: epoch 0, step 0: stage2, head train, 5 parameter tensors."
