"""The layouts of vision transformers, made by small functions from real models: the path alone loads them."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from layout_parts import State, body, noise, projector, under
from torch import nn

from lit_transfer.weights import WeightsError, load_weights


def vit(name: str = "vit_tiny_patch16_224", **options: Any) -> nn.Module:
    torch.manual_seed(1)
    small = {"depth": 2, "img_size": 32, "embed_dim": 48, "num_heads": 3, **options}
    return timm.create_model(name, pretrained=False, num_classes=5, **small)


def test_deit_with_its_distillation_token() -> None:
    source, model = (vit("deit_tiny_distilled_patch16_224", img_size=size) for size in (32, 48))
    report = load_weights(model, {"model": source.state_dict()})
    assert report.coverage == 1
    assert "2 extra tokens kept" in report.adapted["pos_embed"]
    assert torch.equal(model.dist_token, source.dist_token)


def _timm_to_torchvision(name: str) -> str:
    for pattern, new in (
        (r"^blocks\.(\d+)\.", r"encoder.layers.encoder_layer_\1."),
        (r"\.norm([12])\.", r".ln_\1."),
        (r"attn\.qkv\.(\w+)", r"self_attention.in_proj_\1"),
        (r"attn\.proj", "self_attention.out_proj"),
        (r"fc1", "0"),
        (r"fc2", "3"),
        (r"^cls_token", "class_token"),
        (r"^pos_embed", "encoder.pos_embedding"),
        (r"^patch_embed\.proj", "conv_proj"),
        (r"^norm\.", "encoder.ln."),
        (r"^head\.", "heads.head."),
    ):
        name = re.sub(pattern, new, name)
    return name


def torchvision_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(32, 16, 2, 3, 48, 192, num_classes=5)


VITS: dict[str, Callable[[State], Any]] = {
    "dino": lambda s: {
        "student": under("module.backbone", noise(s)) | {"module.head.mlp.0.weight": torch.rand(4, 48)},
        "teacher": under("backbone", s) | {"head.mlp.0.weight": torch.rand(4, 48)},
        "epoch": 3,
        "dino_loss": {"center": torch.rand(1, 8)},
    },
    "dinov2": lambda s: {
        "teacher": under("backbone", s)
        | under("dino_head", projector("mlp"))
        | {"backbone.mask_token": torch.rand(1, 48)}
    },
    "dinov2 in chunks": lambda s: {re.sub(r"^blocks\.(\d)\.", r"blocks.0.\1.", n): t for n, t in s.items()},
    "moco v3": lambda s: {
        "state_dict": {
            **under("module.base_encoder", s | projector("head")),
            **under("module.momentum_encoder", noise(s) | projector("head")),
        }
    },
    "mae": lambda s: {"model": s | {"mask_token": torch.rand(1, 1, 8), "decoder_blocks.0.norm1.weight": torch.rand(8)}},
    "deit": lambda s: {"model": s},
    "torchvision": lambda s: {_timm_to_torchvision(n): t for n, t in s.items()},
    "torchvision of before 2022": lambda s: {
        _timm_to_torchvision(n).replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): t
        for n, t in s.items()
    },
}


@pytest.mark.parametrize("layout", VITS)
def test_vits(tmp_path: Path, layout: str) -> None:
    source = vit()
    torch.save(VITS[layout](body(source)), tmp_path / "f.pth")
    model = vit()
    nn.init.zeros_(model.blocks[0].mlp.fc1.weight)
    load_weights(model, tmp_path / "f.pth")
    assert all(torch.equal(tensor, body(source)[name]) for name, tensor in body(model).items())
    other = torchvision_vit()
    load_weights(other, tmp_path / "f.pth")
    named = {_timm_to_torchvision(name): tensor for name, tensor in body(source).items()}
    assert all(torch.equal(tensor, named[name]) for name, tensor in body(other).items())


@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2", "vit_giant_patch14_reg4_dinov2"])
@pytest.mark.parametrize("size", [56, 42])
def test_dinov2_with_registers_of_its_authors(name: str, size: int) -> None:
    """They add a position to the class token, and timm's models add none: the token has it in itself."""
    small = {"depth": 2, "embed_dim": 48, "num_heads": 2, "mlp_ratio": 2.0, "num_classes": 0}
    source = timm.create_model(name, pretrained=False, img_size=56, **small)
    state = {}
    for key, tensor in source.state_dict().items():
        key = re.sub(r"^blocks\.(\d)\.", r"blocks.0.\1.", key).replace("reg_token", "register_tokens")
        key = key.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3") if "giant" in name else key
        state[key] = torch.rand_like(tensor)
    state["pos_embed"] = torch.rand(1, 1 + 16, 48)
    state["mask_token"] = torch.rand(1, 48)
    model = timm.create_model(name, pretrained=False, img_size=size, **small)
    report = load_weights(model, state)
    unchunked = {re.sub(r"^blocks\.0\.", "blocks.", key): tensor for key, tensor in state.items()}
    expected = timm.models.vision_transformer.checkpoint_filter_fn(unchunked, model)
    assert report.coverage == 1
    assert report.unexpected == ("mask_token",)
    assert report.adapted["cls_token"] == "its position added"
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected[key], rtol=0, atol=1e-6 if key != "pos_embed" else 1e-4)


def test_a_position_is_left_out_only_where_a_class_token_takes_it() -> None:
    state = vit("vit_small_patch14_reg4_dinov2", img_size=28).state_dict()
    state["pos_embed"] = torch.rand(1, 5, 48)
    model = vit("vit_small_patch14_reg4_dinov2", img_size=28)
    with pytest.raises(WeightsError, match=r"pos_embed \(1x5x48 in the file, 1x4x48 in the model\)"):
        load_weights(model, state, exclude=["cls_token"])


def test_a_vit_answers_the_same_in_either_library() -> None:
    """With its head, and with the names of today and of before 2022."""
    one, other = torchvision_vit().eval(), vit().eval()
    images = torch.rand(2, 3, 32, 32)
    nn.init.normal_(one.heads.head.weight)  # it starts at zero
    load_weights(other, one.state_dict())
    torch.testing.assert_close(other(images), one(images))
    old = {
        n.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): t
        for n, t in one.state_dict().items()
    }
    again = torchvision_vit().eval()
    load_weights(again, old)
    torch.testing.assert_close(again(images), one(images))
    load_weights(again, vit().state_dict())
    fresh = vit().eval()
    torch.testing.assert_close(again(images), fresh(images))


def test_swin_of_its_authors() -> None:
    source = timm.create_model("swin_tiny_patch4_window7_224", depths=(2, 2), num_heads=(3, 6), num_classes=5)
    state = {}
    for name, tensor in source.state_dict().items():
        name = re.sub(r"^layers\.1\.downsample", "layers.0.downsample", name).replace("head.fc.", "head.")
        state[name] = tensor
    state["layers.0.blocks.1.attn_mask"] = torch.rand(64, 49, 49)
    state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
    model = timm.create_model("swin_tiny_patch4_window7_224", depths=(2, 2), num_heads=(3, 6), num_classes=5)
    report = load_weights(model, {"model": state})
    assert all(torch.equal(t, source.state_dict()[n]) for n, t in model.state_dict().items())
    assert len(report.unexpected) == 2


def test_the_visual_tower_of_clip() -> None:
    source, model = (vit("vit_base_patch32_clip_224", embed_dim=64, num_heads=2) for _ in range(2))
    state: State = {}
    for name, tensor in body(source).items():
        for pattern, new in (
            (r"^blocks\.", "transformer.resblocks."),
            (r"^cls_token", "class_embedding"),
            (r"^pos_embed", "positional_embedding"),
            (r"^patch_embed\.proj", "conv1"),
            (r"^norm_pre", "ln_pre"),
            (r"^norm\.", "ln_post."),
            (r"\.norm([12])\.", r".ln_\1."),
            (r"attn\.qkv\.(\w+)", r"attn.in_proj_\1"),
            (r"attn\.proj", "attn.out_proj"),
            (r"fc1", "c_fc"),
            (r"fc2", "c_proj"),
        ):
            name = re.sub(pattern, new, name)
        state[name] = tensor.squeeze() if name in ("class_embedding", "positional_embedding") else tensor
    text = {"transformer.resblocks.0.ln_1.weight": torch.rand(64), "token_embedding.weight": torch.rand(9, 64)}
    nn.init.zeros_(model.blocks[0].mlp.fc1.weight)
    load_weights(
        model, {**under("visual", state), "visual.proj": torch.rand(64, 32), **text, "logit_scale": torch.tensor(1.0)}
    )
    assert all(torch.equal(tensor, body(source)[name]) for name, tensor in body(model).items())
