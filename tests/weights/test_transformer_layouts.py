"""Layouts of vision transformers beyond the zoo's: tokens, positions, and both libraries."""

import re

import pytest
import timm
import torch
from torch import nn
from zoo_vits import torchvision_vit, vit

from lit_transfer.weights import WeightsError, load_weights


def test_deit_with_its_distillation_token() -> None:
    source, model = (vit("deit_tiny_distilled_patch16_224", img_size=size) for size in (32, 48))
    report = load_weights(model, {"model": source.state_dict()})
    assert report.coverage == 1
    assert "2 extra tokens kept" in report.adapted["pos_embed"]
    assert torch.equal(model.dist_token, source.dist_token)


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
