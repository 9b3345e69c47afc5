"""What architecture a set of names looks like, for people who look into a file or read an error."""

import re
from collections.abc import Iterable

# Pattern in the names (one on each line), words, and which of torchvision's models have such names (shell patterns).
# The first that is found, the more special first.
_LOOKS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (r"visual\.transformer\.resblocks\.", "CLIP", ()),
    (r"encoderblock_\d+\.MultiHeadDotProductAttention", "a ViT (JAX)", ()),
    (r"encoder_layer_\d+\.self_attention\.", "a ViT (torchvision)", ("vit_*",)),
    (r"\.MBconv\.|stages\.\d+\.blocks\.\d+\.conv\.conv2_kxk\.", "a MaxViT", ("maxvit_*",)),
    (r"rel_pos_bias\.relative_pos|(^|[a-z]\.)blocks\.\d+\.attn\.relative_pos", "a BEiT", ()),
    (r"relative_position_bias_table|cpb_mlp\.", "a Swin transformer", ("swin_*",)),
    (r"(^|\.)blocks\.\d+\.(\d+\.)?attn\.qkv\.", "a ViT (timm, DINO, MAE)", ()),
    (r"encoder\.layer\.\d+\.attention\.attention\.query", "a ViT (transformers)", ()),
    (r"denselayer\d+", "a DenseNet", ("densenet*",)),
    (r"stages\.\d+\.(blocks\.)?\d+\.(dwconv|conv_dw)\.|\.\d+\.layer_scale$", "a ConvNeXt", ("convnext*",)),
    (r"expand3x3", "a SqueezeNet", ("squeezenet*",)),
    (r"(^|\.)(Mixed_\d\w|inception\d\w)\.", "an Inception or GoogLeNet", ("inception_v3", "googlenet")),
    (r"trunk_output\.", "a RegNet", ("regnet_*",)),
    (r"(^|\.)layer1\.\d+\.conv3\.", "a ResNet of bottlenecks", ("*resnet*_2", "resnet50", "resnet1*", "resnext*")),
    (r"(^|\.)layer1\.\d+\.conv1\.", "a ResNet of basic blocks", ("resnet18", "resnet34")),
    (r"stage\d\.\d+\.branch2\.", "a ShuffleNet", ("shufflenet*",)),
    (r"(^|\.)features\.\d+\.\d+\.block\.", "an EfficientNet", ("efficientnet*",)),
    (r"(^|\.)blocks\.\d+\.\d+\.(conv_pw|conv_dw)\.", "an EfficientNet or MobileNet (timm)", ()),
    (r"(^|\.)layer4\.\d+\.downsample\.", "a ResNet", ("resnet*", "resnext*")),
    (r"(^|\.)features\.\d+\.(conv|block)\.\d\.", "a MobileNet", ("mobilenet*",)),
    (r"(^|\.)layers\.\d+\.\d+\.layers\.\d", "an MNASNet", ("mnasnet*",)),
    (r"(^|\.)features\.1\d\.bias$", "a VGG or AlexNet", ("vgg*", "alexnet")),
)


def looks_like(names: Iterable[str]) -> str:
    """The architecture in words; "" if none is recognised."""
    return _look(names)[0]


def torchvision_family(names: Iterable[str]) -> tuple[str, ...]:
    """Shell patterns for the names of those torchvision models whose tensors have such names; empty if none has."""
    return _look(names)[1]


def _look(names: Iterable[str]) -> tuple[str, tuple[str, ...]]:
    text = "\n".join(names)
    found = ((words, family) for pattern, words, family in _LOOKS if re.search(pattern, text, re.MULTILINE))
    return next(found, ("", ()))
