"""Adapters: the same answers at first and after merging, upstream names again, and nothing thawed or frozen by it."""

import builtins
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from torch import nn

from lit_transfer import create_backbone, freeze, frozen_names, param_groups
from lit_transfer.lora import add_lora, lora_options, merge_lora
from lit_transfer.stages import stages_of


def hf_vit() -> nn.Module:
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
    return transformers.ViTForImageClassification(transformers.ViTConfig(image_size=32, patch_size=8, **sizes))


MODELS: dict[str, Any] = {
    "timm vit": lambda: timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=2, num_classes=5
    ),
    "transformers vit": hf_vit,
    "resnet18": lambda: torchvision.models.resnet18(num_classes=5),
    "mobilenet": lambda: torchvision.models.mobilenet_v3_small(num_classes=5),  # with grouped convolutions
}


@pytest.fixture(params=MODELS)
def backbone(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    made = create_backbone(MODELS[request.param](), input_size=32)
    for layer in made.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 2)
    return made.eval()


def shake(module: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)


def test_adapters_change_nothing_until_they_train_and_merge_into_equal_answers(backbone: nn.Module) -> None:
    images = torch.rand(4, 3, 32, 32)
    names, stages = list(backbone.state_dict()), stages_of(backbone)
    with torch.no_grad():
        before = backbone(images)
        chosen = add_lora(backbone, r=4, alpha=8)
        torch.testing.assert_close(backbone(images), before, rtol=0, atol=0)
        shake(backbone)
        trained = backbone(images)
        assert (trained - before).abs().max() > 1e-3 * before.abs().max()
        assert merge_lora(backbone) == chosen
        merged = backbone(images)
    assert (merged - trained).abs().max() <= 1e-5 * trained.abs().max()
    assert list(backbone.state_dict()) == names
    assert stages_of(backbone) == stages
    assert lora_options(backbone) is None
    assert merge_lora(backbone) == ()


def test_adapters_belong_to_the_stage_of_their_layer_and_stages_stay_complete(backbone: nn.Module) -> None:
    before = {stage.name: set(stage.parameters) for stage in stages_of(backbone)}
    add_lora(backbone)
    after = stages_of(backbone)
    held = [name for stage in after for name in stage.parameters]
    assert sorted(held) == sorted(name for name, _ in backbone.named_parameters())
    for stage in after:
        own = {name.replace(".base_layer", "") for name in stage.parameters if "lora_" not in name}
        assert own == before[stage.name]
        layers = {name.partition(".lora_")[0] for name in stage.parameters if "lora_" in name}
        assert {f"{layer}.weight" for layer in layers} <= before[stage.name]


def test_what_trains_and_what_is_frozen_stays_so() -> None:
    backbone = create_backbone(MODELS["resnet18"](), input_size=32)
    backbone.get_parameter("layer2.0.conv1.weight").requires_grad_(False)
    frozen = freeze(backbone, ["stem", "stage1"])
    add_lora(backbone, targets=["stage1", "stage4"])
    left = {name.replace(".base_layer", "") for name in frozen_names(backbone)}
    assert left == {*frozen, "layer2.0.conv1.weight"}
    backbone.train()
    assert not backbone.get_submodule("layer1.0.bn1").training
    freeze(backbone, "lora")
    assert sum("lora_" in name for name in frozen_names(backbone)) == sum(
        "lora_" in name for name, _ in backbone.named_parameters()
    )


def test_what_cannot_be_merged_gets_no_adapter() -> None:
    chosen = add_lora(create_backbone(MODELS["mobilenet"](), input_size=32))
    model = MODELS["mobilenet"]()
    assert all(getattr(model.get_submodule(name), "groups", 1) == 1 for name in chosen)
    vit = torchvision.models.VisionTransformer(32, 8, 2, 2, 24, 48, num_classes=5)
    assert not any("out_proj" in name for name in add_lora(vit, targets="all"))


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("qkv", {"blocks.0.attn.qkv", "blocks.1.attn.qkv", "blocks.2.attn.qkv"}),
        (["blocks.1.attn.*"], {"blocks.1.attn.qkv", "blocks.1.attn.proj"}),
        (["blocks.0.mlp.fc1"], {"blocks.0.mlp.fc1"}),
    ],
)
def test_targets(targets: Any, expected: set[str]) -> None:
    backbone = create_backbone(MODELS["timm vit"](), input_size=32)
    assert set(add_lora(backbone, targets=targets)) == expected
    again = create_backbone(MODELS["timm vit"](), input_size=32)
    assert set(add_lora(again, **(lora_options(backbone) or {}))) == expected


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"targets": "qvk"}, "'qvk' names no nn.Linear.*Nearest: qkv"),
        ({"targets": ["stage9"]}, "'stage9' names no"),
        ({"targets": []}, "targets is empty"),
        ({"r": 0}, "r=0: the rank"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"alpha": 0}, "alpha=0 must be above 0"),
    ],
)
def test_wrong_arguments_leave_the_module_as_it_is(arguments: dict[str, Any], told: str) -> None:
    backbone = create_backbone(MODELS["timm vit"](), input_size=32)
    names = list(backbone.state_dict())
    with pytest.raises(ValueError, match=told):
        add_lora(backbone, **arguments)
    assert list(backbone.state_dict()) == names


def test_adapters_twice_and_adapters_without_peft_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = create_backbone(MODELS["timm vit"](), input_size=32)
    real_import = builtins.__import__

    def without_peft(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "peft":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", without_peft)
        assert merge_lora(backbone) == ()
        with pytest.raises(ImportError, match=r"pip install 'lit-transfer\[lora\]'"):
            add_lora(backbone)
    add_lora(backbone)
    with pytest.raises(ValueError, match="adapters already"):
        add_lora(backbone)


def test_adapters_are_a_parameter_group_of_their_own() -> None:
    backbone = create_backbone(MODELS["timm vit"](), input_size=32)
    add_lora(backbone)
    for options, rate in (({}, 0.1), ({"head_lr": 0.5}, 0.5), ({"head_lr": 0.5, "lora_lr": 0.2}, 0.2)):
        groups = param_groups(backbone, 0.1, **options)
        adapters = next(group for group in groups if group["name"] == "lora")
        assert adapters["rate"] == rate
        assert all("lora_" in name for name, _ in adapters["params"])
        names = [name for group in groups for name, _ in group["params"]]
        assert sorted(names) == sorted(name for name, _ in backbone.named_parameters())
