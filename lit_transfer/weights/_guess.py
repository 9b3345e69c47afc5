"""What architecture a set of names looks like, for people who read an error."""

import re
from collections.abc import Iterable

# First pattern that some name matches, the more special first.
_LOOKS = (
    (r"visual\.transformer\.resblocks\.", "CLIP"),
    (r"encoder_layer_\d+\.self_attention\.", "a torchvision ViT"),
    (r"relative_position_bias_table", "a Swin transformer"),
    (r"(^|\.)blocks\.\d+\.(\d+\.)?attn\.qkv\.", "a ViT (timm, DINO, MAE)"),
    (r"encoder\.layer\.\d+\.attention\.attention\.query", "a ViT (transformers)"),
    (r"denselayer\d+", "a DenseNet"),
    (r"\.dwconv\.|\.conv_dw\.|layer_scale", "a ConvNeXt"),
    (r"expand3x3", "a SqueezeNet"),
    (r"Mixed_\d\w\.|inception\d\w\.", "an Inception or GoogLeNet"),
    (r"trunk_output\.", "a RegNet"),
    (r"(^|\.)layer1\.\d+\.conv3\.", "a ResNet with bottlenecks (50 layers or more)"),
    (r"(^|\.)layer1\.\d+\.conv1\.", "a ResNet (18 or 34 layers)"),
    (r"stage\d\.\d+\.branch2\.", "a ShuffleNet"),
    (r"(^|\.)(blocks|features)\.\d+\.\d+\.(block|conv_pw|se)\b", "an EfficientNet or MobileNet"),
    (r"(^|\.)features\.\d+\.conv\.\d", "a MobileNet"),
    (r"(^|\.)features\.\d+\.weight$", "a VGG or AlexNet"),
)


def looks_like(names: Iterable[str]) -> str:
    """The architecture in words; "" if none is recognised."""
    listed = list(names)
    for pattern, words in _LOOKS:
        if any(re.search(pattern, name) for name in listed):
            return words
    return ""
