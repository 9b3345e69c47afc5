"""The LoRA callback: adapters train under a schedule, survive checkpoints and resumes, and leave nothing behind."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from lit_transfer import load_predictor, save_weights
from lit_transfer.callbacks import (
    FeatureCaching,
    FinetuningSchedule,
    LoRA,
    TolerantRestore,
    TrainabilityAudit,
    WeightLoading,
)
from lit_transfer.data import ImageFolderData
from lit_transfer.lora import merge_lora
from lit_transfer.modules import ImageClassifier, TransferModule

PHASES: list[Any] = [{"train": ["head"]}, {"at": {"epoch": 1}, "train": ["head", "lora"]}]


def module(backbone: str = "resnet18", **options: Any) -> ImageClassifier:
    seed_everything(0, verbose=False)
    return ImageClassifier(backbone, weights=None, input_size=32, **options)


def data(photos: Path) -> ImageFolderData:
    return ImageFolderData(photos, 8, augment="none", num_workers=0)


def trainer_of(*callbacks: Any, epochs: int = 2, **options: Any) -> Trainer:
    return Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **options,
    )


def is_adapter(name: str) -> bool:
    return "lora_" in name


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> tuple[ImageClassifier, dict[str, Any], Path]:
    net = module()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    trainer = trainer_of(LoRA(r=2), FinetuningSchedule(PHASES), TrainabilityAudit())
    trainer.fit(net, datamodule=data(photos))
    path = tmp_path_factory.mktemp("lora") / "last.ckpt"
    trainer.save_checkpoint(path)
    return net, before, path


def test_only_head_and_adapters_move(fitted: tuple[ImageClassifier, dict[str, Any], Path]) -> None:
    net, before, _ = fitted
    moved = {name for name, value in net.named_parameters() if is_adapter(name) and "lora_B" in name and value.any()}
    assert moved == {name for name, _ in net.named_parameters() if "lora_B" in name}
    for name, value in net.state_dict().items():
        if not is_adapter(name) and not name.startswith("head."):
            assert torch.equal(value, before[name.replace(".base_layer", "")]), name
    assert not any(parameter.requires_grad for name, parameter in net.named_parameters() if "base_layer" in name)


def test_the_order_of_the_two_callbacks_does_not_matter(photos: Path, fitted: Any) -> None:
    net = module()
    trainer_of(FinetuningSchedule(PHASES), LoRA(r=2)).fit(net, datamodule=data(photos))
    for name, value in fitted[0].state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], value)


def test_a_checkpoint_is_built_again_and_merged_for_answers(
    fitted: tuple[ImageClassifier, dict[str, Any], Path], photos: Path
) -> None:
    net, before, path = fitted
    again = TransferModule.load_from_checkpoint(path)
    assert list(again.state_dict()) == list(net.state_dict())
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in net.state_dict().items())
    predictor = load_predictor(path, "cpu")
    assert not any(map(is_adapter, predictor.module.state_dict()))
    assert set(predictor.module.state_dict()) >= set(before)
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(predictor.module(images), again.eval()(images), rtol=0, atol=1e-5)
    plain = module()  # is given its adapters by the checkpoint
    trainer_of(FinetuningSchedule(PHASES)).validate(plain, datamodule=data(photos), ckpt_path=path, verbose=False)
    assert torch.equal(plain.get_parameter("head.weight"), net.get_parameter("head.weight"))
    assert any(map(is_adapter, plain.state_dict()))


def test_merged_weights_are_those_of_a_plain_module(fitted: Any, tmp_path: Path) -> None:
    again = TransferModule.load_from_checkpoint(fitted[2])
    merge_lora(again)
    save_weights(again.backbone, tmp_path / "merged.pth")
    module().backbone.load_state_dict(torch.load(tmp_path / "merged.pth", weights_only=True), strict=True)


def test_a_resumed_run_ends_where_the_whole_one_does(photos: Path, tmp_path: Path) -> None:
    def run(epochs: int, ckpt_path: Path | None = None) -> tuple[ImageClassifier, Trainer]:
        net = module("squeezenet1_1", lr_scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=1))
        schedule = FinetuningSchedule([{"train": ["head", "lora"]}])
        trainer = trainer_of(LoRA(r=2), schedule, TolerantRestore(), epochs=epochs)
        trainer.fit(net, datamodule=data(photos), ckpt_path=ckpt_path)
        return net, trainer

    whole, _ = run(2)
    _, half = run(1)
    half.save_checkpoint(tmp_path / "half.ckpt")
    rest, _ = run(2, tmp_path / "half.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(rest.state_dict()[name], value), name


def test_cached_features_end_where_the_adapted_stages_begin(photos: Path, tmp_path: Path) -> None:
    made = []
    for caching in ([], [FeatureCaching(folder=tmp_path, fast=False)]):
        net = module()
        lora = LoRA(r=2, targets=["stage4"])
        trainer_of(lora, FinetuningSchedule([{"train": ["head", "lora"]}]), *caching).fit(net, datamodule=data(photos))
        made.append(net)
    assert made[0].get_parameter("backbone.layer4.1.conv2.lora_B.default.weight").any()
    for name, value in made[0].state_dict().items():
        torch.testing.assert_close(made[1].state_dict()[name], value, rtol=0, atol=0)


def test_weights_are_loaded_before_and_the_other_order_is_refused(photos: Path, tmp_path: Path) -> None:
    source = module()
    with torch.no_grad():
        source.backbone.get_parameter("layer1.0.conv1.weight").fill_(0.25)
    save_weights(source.backbone, tmp_path / "own.pth")
    net = module()
    loading, lora = WeightLoading(tmp_path / "own.pth"), LoRA(r=2)
    trainer_of(loading, lora, FinetuningSchedule([{"train": ["head", "lora"]}]), epochs=1).fit(
        net, datamodule=data(photos)
    )
    assert net.get_parameter("backbone.layer1.0.conv1.base_layer.weight").eq(0.25).all()
    with pytest.raises(ValueError, match="WeightLoading must come before LoRA"):
        trainer_of(LoRA(r=2), WeightLoading(tmp_path / "own.pth")).fit(module(), datamodule=data(photos))


def test_a_schedule_with_adapters_that_nobody_added_says_what_is_missing(photos: Path) -> None:
    with pytest.raises(ValueError, match="lora"):
        trainer_of(FinetuningSchedule([{"train": ["head", "lora"]}])).fit(module(), datamodule=data(photos))


def test_phases_may_set_rates_of_adapters_too(photos: Path) -> None:
    net = module()
    phases: list[Any] = [{"train": ["head", "lora"], "lr": 0.01, "layer_decay": 0.5, "warmup": 2}]
    trainer_of(LoRA(r=2), FinetuningSchedule(phases), epochs=1).fit(net, datamodule=data(photos))
    assert net.get_parameter("backbone.layer4.1.conv2.lora_B.default.weight").any()


def test_the_code_of_the_page_runs(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "lora.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    quiet = "logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False"
    # without a download, in seconds, and on a CPU
    for old, new in (
        ('"resnet18"', '"squeezenet1_1", weights=None, input_size=32'),
        ("max_epochs=20", f"max_epochs=2, accelerator='cpu', log_every_n_steps=1, {quiet}"),
        ('"photos/")', '"photos/", num_workers=0)'),
    ):
        assert old in code
        code = code.replace(old, new, 1)
    monkeypatch.chdir(tmp_path)
    Path("photos").symlink_to(photos)
    made: dict[str, Any] = {}
    exec(code, made)
    assert len(made["answers"]) == 24
    assert not any(map(is_adapter, torch.load("merged.pth", weights_only=True)))
