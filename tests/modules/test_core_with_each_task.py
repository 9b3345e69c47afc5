"""The core with each task and each source: training, saving, freezing, caching, restoring do not ask which it is."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from transformers import ViTConfig

from lit_transfer import WeightsError, load_predictor, param_groups
from lit_transfer.callbacks import FeatureCaching, FinetuningSchedule, TolerantRestore, WeightLoading
from lit_transfer.callbacks.trainability_audit import TrainabilityAudit
from lit_transfer.modules import ImageClassifier, ImageRegressor, MultiLabelClassifier, TransferModule

MakeTrainer = Callable[..., Trainer]
TASKS: dict[str, type[TransferModule]] = {
    "data": ImageClassifier,
    "numbers": ImageRegressor,
    "labels": MultiLabelClassifier,
}

SIDE = 16  # pixels of the images in conftest.py
# Small networks of each source that take images of that size.
SOURCES = ("torchvision", "timm", "transformers", "own module")


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> type[TransferModule]:
    return TASKS[request.param]


@pytest.fixture
def own_data(task: type[TransferModule], request: pytest.FixtureRequest) -> LightningDataModule:
    data: LightningDataModule = request.getfixturevalue(next(name for name, cls in TASKS.items() if cls is task))
    return data


@pytest.fixture
def make(task: type[TransferModule], backbone: nn.Module) -> Callable[..., Any]:
    """Make the same module each time."""
    start = {name: value.clone() for name, value in backbone.state_dict().items()}

    def made(**arguments: Any) -> Any:
        torch.manual_seed(1)
        backbone.load_state_dict(start)
        return task(backbone, **arguments)

    return made


@pytest.fixture(params=SOURCES)
def make_on_source(
    task: type[TransferModule], request: pytest.FixtureRequest, tmp_path: Path
) -> tuple[str, Callable[..., Any]]:
    """Make the same module each time, on a backbone of one source."""
    names = {"torchvision": "shufflenet_v2_x0_5", "timm": "timm/test_resnet", "transformers": f"hf/{tmp_path}"}
    if request.param == "transformers":
        small = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
        ViTConfig(**small, image_size=SIDE, patch_size=4).save_pretrained(tmp_path)

    def made(**arguments: Any) -> Any:
        torch.manual_seed(1)
        backbone = names.get(request.param) or copy.deepcopy(request.getfixturevalue("backbone"))
        return task(backbone, None, input_size=SIDE, **arguments)

    return request.param, made


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


HEADS = ["cosine", "attention"]


@pytest.mark.parametrize("head", HEADS)
def test_other_heads_are_trained_saved_and_cached(
    head: str, make: Any, own_data: Any, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    """Bit for bit with cached features: batches of 8, float32, one thread, CPU."""
    runs = []
    for caching in ([], [FeatureCaching(fast=False, folder=tmp_path / "cache")]):
        module = make(head=head)
        callbacks = [FinetuningSchedule("linear_probe"), TrainabilityAudit(), *caching]
        trainer = make_trainer(max_epochs=3, callbacks=callbacks)
        trainer.fit(module, own_data)
        runs.append(state(module))
    assert (tmp_path / "cache").exists()
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())
    fresh = make(head=head, **{f"num_{module._things}": module.num_outputs})
    trained = [name for name, value in state(fresh.head).items() if not torch.equal(value, runs[0][f"head.{name}"])]
    assert sorted(trained) == sorted(state(fresh.head))
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    backbone = module.backbone._upstream
    loaded = TransferModule.load_from_checkpoint(tmp_path / "saved.ckpt", backbone=backbone, weights_only=True)
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(loaded.eval()(images), module.eval()(images))


@pytest.mark.parametrize("head", HEADS)
def test_fast_features_for_other_heads(
    head: str, make: Any, own_data: Any, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    measured = []
    for views in (None, 1, 0):
        caching = [] if views is None else [FeatureCaching(views=views, folder=tmp_path / "cache")]
        module, trainer = make(head=head), make_trainer(callbacks=[FinetuningSchedule("linear_probe"), *caching])
        trainer.fit(module, own_data)
        measured.append(trainer.validate(module, own_data, verbose=False)[0])
    assert measured[1] == pytest.approx(measured[0], abs=1e-3)
    assert measured[2] == pytest.approx(measured[0], abs=1e-3)


def test_a_new_head_may_take_the_map_and_the_next_one_the_features(make: Any) -> None:
    module, images = make(), torch.rand(2, 3, 16, 16)
    number = f"num_{module._things}"
    module.reset_head(**{number: 3}, head="attention")
    assert module.backbone(images).shape == (2, 16, 3, 3)
    assert module(images).shape == (2, 3)
    module.reset_head(**{number: 2}, head="cosine")
    assert module.backbone(images).shape == (2, 16)
    assert module(images).shape == (2, 2)


def test_schedule_and_audit(make: Any, own_data: Any, make_trainer: MakeTrainer) -> None:
    module = make()
    before = state(module.backbone)
    make_trainer(callbacks=[FinetuningSchedule("linear_probe"), TrainabilityAudit()]).fit(module, own_data)
    assert all(torch.equal(value, before[name]) for name, value in module.backbone.state_dict().items())
    module, phases = make(), [{"train": ["head"]}, {"at": {"epoch": 1}, "train": "all"}]
    make_trainer(callbacks=[FinetuningSchedule(phases), TrainabilityAudit()]).fit(module, own_data)
    assert not torch.equal(module.backbone.state_dict()["stem.weight"], before["stem.weight"])


def test_cached_features_train_the_same(make: Any, own_data: Any, make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """Bit for bit: batches of 8, float32, one thread, CPU."""
    runs = []
    for caching in ([], [FeatureCaching(fast=False, folder=tmp_path / "cache")]):
        module, trainer = make(), make_trainer(max_epochs=3, callbacks=[FinetuningSchedule("linear_probe"), *caching])
        trainer.fit(module, own_data)
        runs.append((state(module), dict(trainer.callback_metrics)))
    assert (tmp_path / "cache").exists()
    assert runs[0][0].keys() == runs[1][0].keys()
    assert all(torch.equal(value, runs[1][0][name]) for name, value in runs[0][0].items())
    assert runs[0][1] == runs[1][1]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists")  # both runs keep theirs in one
@pytest.mark.parametrize("tolerant", [True, False])
def test_a_resumed_run_ends_like_one_that_was_not_cut(
    tolerant: bool, make: Any, own_data: Any, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    """Bit for bit, in everything that is saved: batches of 8, float32, one thread, CPU."""
    whole, callbacks = make(), [TolerantRestore()] if tolerant else []
    keeping = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    make_trainer(max_epochs=3, callbacks=[keeping, *callbacks], enable_checkpointing=True).fit(whole, own_data)
    expected, again = state(whole), make()
    keeping = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    make_trainer(max_epochs=3, callbacks=[keeping, *callbacks], enable_checkpointing=True).fit(
        again, own_data, ckpt_path=tmp_path / "epoch=1.ckpt", weights_only=True
    )
    assert state(again).keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in state(again).items())


def test_a_file_by_hand_fills_it(make: Any, own_data: Any, make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trained = make()
    make_trainer(max_epochs=1).fit(trained, own_data)
    weights = {name: value for name, value in state(trained).items() if name.startswith(("backbone.", "head."))}
    net = {f"module.{name}": value for name, value in weights.items()}
    torch.save({"epoch": 3, "model_state_dict": net}, tmp_path / "hand.pth.tar")
    scale = {"target_mean": [0.0, 0.0], "target_std": [1.0, 1.0]} if isinstance(trained, ImageRegressor) else {}
    filled, measured = make(**scale), make_trainer(callbacks=[TolerantRestore()])
    measured.validate(filled, own_data, ckpt_path=tmp_path / "hand.pth.tar", verbose=False)
    assert all(torch.equal(filled.state_dict()[name], value) for name, value in weights.items())
    if scale:  # which scale the file's head speaks in, it does not tell
        with pytest.raises(WeightsError, match="not in it: target_mean, target_std"):
            measured.validate(make(), own_data, ckpt_path=tmp_path / "hand.pth.tar", verbose=False)


def test_weights_of_a_backbone_alone(make: Any, own_data: Any, make_trainer: MakeTrainer, tmp_path: Path) -> None:
    module = make()
    weights = {name: value + 1 for name, value in module.backbone.state_dict().items()}
    torch.save({f"module.{name}": value for name, value in weights.items()}, tmp_path / "body.pth")
    loading = WeightLoading(tmp_path / "body.pth")
    make_trainer(max_epochs=1, callbacks=[loading, FinetuningSchedule("linear_probe")]).fit(module, own_data)
    assert all(torch.equal(module.backbone.state_dict()[name], value) for name, value in weights.items())


def test_groups_hold_each_parameter_once(make: Any, own_data: Any, make_trainer: MakeTrainer) -> None:
    module = make()
    make_trainer(max_epochs=1).fit(module, own_data)
    groups = param_groups(module, 1e-3, layer_decay=0.5, head_lr=1e-2, stages=module.stages)
    held = [parameter for group in groups for _, parameter in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, module.parameters()))
    assert {group["lr"] for group in groups if group["name"].startswith("head")} == {1e-2}


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists")  # the resumed run keeps its own beside
def test_the_core_on_each_source(make_on_source: Any, own_data: Any, make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """Bit for bit, with and without the cache, resumed or not: batches of 8, float32, one thread, CPU."""
    source, make = make_on_source
    before = make()
    weights = {name: value + 0.01 for name, value in before.backbone.state_dict().items() if value.is_floating_point()}
    torch.save(
        {"model_state_dict": {f"module.{name}": value for name, value in weights.items()}}, tmp_path / "body.pth"
    )
    phases = [{"train": ["head"]}, {"at": {"epoch": 1}, "train": "all"}]

    def fit(*callbacks: Any, **arguments: Any) -> Any:
        module, watching = make(), [FinetuningSchedule(phases), TrainabilityAudit(), *callbacks]
        keeps = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
        make_trainer(callbacks=watching, enable_checkpointing=keeps).fit(module, own_data, **arguments)
        return module

    def keeping() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path / "plain", filename="{epoch}", save_top_k=-1)

    plain = fit(WeightLoading(tmp_path / "body.pth"), keeping())
    saved = torch.load(tmp_path / "plain" / "epoch=0.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(saved[f"backbone.{name}"], value) for name, value in weights.items())
    expected = state(plain)
    assert any(not torch.equal(expected[f"backbone.{name}"], value) for name, value in weights.items())
    caching = FeatureCaching(fast=False, folder=tmp_path / "cache")
    cached = state(fit(WeightLoading(tmp_path / "body.pth"), caching))
    assert (tmp_path / "cache").exists()
    again = tmp_path / "plain" / "epoch=0.ckpt"
    resumed = state(fit(TolerantRestore(), keeping(), ckpt_path=again, weights_only=True))
    for other in (cached, resumed):
        assert other.keys() == expected.keys()
        assert [name for name, value in expected.items() if not torch.equal(value, other[name])] == []

    groups = param_groups(plain, 1e-3, layer_decay=0.5, stages=plain.stages)
    held = [parameter for group in groups for _, parameter in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, plain.parameters()))
    number = {f"num_{plain._things}": len(own_data_names(own_data))}
    filled = {"module": make(**number)} if source == "own module" else {}
    predictor = load_predictor(tmp_path / "plain" / "epoch=1.ckpt", "cpu", **filled)
    images = next(iter(own_data.val_dataloader()))[0]
    with torch.inference_mode():
        assert torch.equal(predictor.outputs(images), plain.eval().predict_step(images).float())


@pytest.mark.parametrize("other", TASKS)
def test_data_of_another_task_is_refused(
    other: str, make: Any, own_data: Any, make_trainer: MakeTrainer, request: pytest.FixtureRequest
) -> None:
    """Though as many outputs are asked for as it has: class numbers and shares are taken by more than one loss."""
    data = request.getfixturevalue(other)
    if data is own_data:
        return
    module = make()
    number = make(**{f"num_{module._things}": len(own_data_names(data))})
    with pytest.raises(
        ValueError, match=f"learns {module._things}, and the data has .*: train an? {TASKS[other].__name__}"
    ):
        make_trainer().fit(number, data)


def own_data_names(data: Any) -> list[str]:
    names = ("class_names", "label_names", "target_names")
    return next(list(getattr(data, name)) for name in names if hasattr(data, name))
