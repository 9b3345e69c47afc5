"""What names look like."""

import pytest

from lit_transfer.weights._guess import looks_like


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["blocks.0.attn.relative_position_bias_table"], "a BEiT"),
        (["module.blocks.11.attn.relative_position_bias_table"], "a BEiT"),
        (["rel_pos_bias.relative_position_bias_table", "blocks.0.attn.qkv.weight"], "a BEiT"),
        (["layers.0.blocks.0.attn.relative_position_bias_table"], "a Swin transformer"),
        (["features.1.0.attn.relative_position_bias_table"], "a Swin transformer"),
        (["layers.0.blocks.0.attn.cpb_mlp.0.weight"], "a Swin transformer"),
        (["blocks.0.attn.qkv.weight"], "a ViT (timm, DINO, MAE)"),
        (["layer1.0.conv1.weight"], "a ResNet of basic blocks"),
        (["something.weight"], ""),
    ],
)
def test_the_more_special_first(names: list[str], words: str) -> None:
    assert looks_like(names) == words
