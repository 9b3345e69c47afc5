"""Renames of known families of architectures, where a file's names are those of another version or library.

Sources: torchvision densenet.py and vision_transformer.py (`_load_state_dict`, `MLPBlock._load_from_state_dict`), the
released checkpoints of Swin, ConvNeXt, CLIP and DINOv2, and timm's models of the same names; for JAX's ViT
`_load_weights` in timm's vision_transformer.py; `checkpoint_filter_fn` in timm's eva.py; detectron2's
modeling/backbone/resnet.py; pycls' models/resnet.py, anynet.py and blocks.py; mmpretrain's
models/backbones/vision_transformer.py; for BEiT run_class_finetuning.py of microsoft/unilm.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Rule = tuple[str, str | Callable[[re.Match[str]], str]]

_VIT_TO_TIMM = (
    (r"(?:^|(?<=\.))class_token$", "cls_token"),
    (r"(?:^|(?<=\.))encoder\.pos_embedding$", "pos_embed"),
    (r"(?:^|(?<=\.))conv_proj\.", "patch_embed.proj."),
    (r"(?:^|(?<=\.))encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"(?<=\.)ln_([12])\.", r"norm\1."),
    (r"(?<=\.)self_attention\.in_proj_(weight|bias)$", r"attn.qkv.\1"),
    (r"(?<=\.)self_attention\.out_proj\.", "attn.proj."),
    (r"(?<=\.)mlp\.(?:0|linear_1)\.", "mlp.fc1."),
    (r"(?<=\.)mlp\.(?:3|linear_2)\.", "mlp.fc2."),
    (r"(?:^|(?<=\.))encoder\.ln\.", "norm."),
    (r"(?:^|(?<=\.))heads\.head\.", "head."),
)
_TIMM_TO_VIT = (
    (r"(?:^|(?<=\.))blocks\.(\d+)\.", r"encoder.layers.encoder_layer_\1."),
    (r"(?:^|(?<=\.))cls_token$", "class_token"),
    (r"(?:^|(?<=\.))pos_embed$", "encoder.pos_embedding"),
    (r"(?:^|(?<=\.))patch_embed\.proj\.", "conv_proj."),
    (r"(?<=\.)norm([12])\.", r"ln_\1."),
    (r"(?<=\.)attn\.qkv\.(weight|bias)$", r"self_attention.in_proj_\1"),
    (r"(?<=\.)attn\.proj\.", "self_attention.out_proj."),
    (r"(?<=\.)mlp\.fc1\.", "mlp.0."),
    (r"(?<=\.)mlp\.fc2\.", "mlp.3."),
    (r"(?:^|(?<=\.))norm\.(weight|bias)$", r"encoder.ln.\1"),
    (r"(?:^|(?<=\.))head\.(weight|bias)$", r"heads.head.\1"),
)
_CLIP_TO_TIMM = (
    (r"(?:^|(?<=\.))transformer\.resblocks\.(\d+)\.", r"blocks.\1."),
    (r"(?:^|(?<=\.))class_embedding$", "cls_token"),
    (r"(?:^|(?<=\.))positional_embedding$", "pos_embed"),
    (r"(?:^|(?<=\.))conv1\.weight$", "patch_embed.proj.weight"),
    (r"(?:^|(?<=\.))ln_pre\.", "norm_pre."),
    (r"(?:^|(?<=\.))ln_post\.", "norm."),
    (r"(?<=\.)ln_([12])\.", r"norm\1."),
    (r"(?<=\.)attn\.in_proj_(weight|bias)$", r"attn.qkv.\1"),
    (r"(?<=\.)attn\.out_proj\.", "attn.proj."),
    (r"(?<=\.)mlp\.c_fc\.", "mlp.fc1."),
    (r"(?<=\.)mlp\.c_proj\.", "mlp.fc2."),
)
_JAX_TO_TIMM = (
    (r"(?:^|(?<=\.))Transformer\.encoderblock_(\d+)\.", r"blocks.\1."),
    (r"(?<=\.)LayerNorm_0\.", "norm1."),
    (r"(?<=\.)LayerNorm_[12]\.", "norm2."),
    (r"(?<=\.)MultiHeadDotProductAttention_[01]\.in_proj_(weight|bias)$", r"attn.qkv.\1"),
    (r"(?<=\.)MultiHeadDotProductAttention_[01]\.out\.", "attn.proj."),
    (r"(?<=\.)MlpBlock_[03]\.Dense_0\.", "mlp.fc1."),
    (r"(?<=\.)MlpBlock_[03]\.Dense_1\.", "mlp.fc2."),
    (r"(?:^|(?<=\.))cls$", "cls_token"),
    (r"(?:^|(?<=\.))(?:Transformer\.posembed_input\.)?pos_embedding$", "pos_embed"),
    (r"(?:^|(?<=\.))embedding\.", "patch_embed.proj."),
    (r"(?:^|(?<=\.))Transformer\.encoder_norm\.", "norm."),
)
_MMPRETRAIN_TO_TIMM = (
    (r"(?:^|(?<=\.))layers\.(\d+)\.ffn\.layers\.0\.0\.", r"blocks.\1.mlp.fc1."),
    (r"(?:^|(?<=\.))layers\.(\d+)\.ffn\.layers\.1\.", r"blocks.\1.mlp.fc2."),
    (r"(?:^|(?<=\.))layers\.(\d+)\.attn\.", r"blocks.\1.attn."),
    (r"(?:^|(?<=\.))layers\.(\d+)\.ln([12])\.", r"blocks.\1.norm\2."),
    (r"(?:^|(?<=\.))patch_embed\.projection\.", "patch_embed.proj."),
    (r"(?:^|(?<=backbone\.))ln1\.", "norm."),
)
_EVA02_TO_TIMM = (
    (r"(?<=\.)mlp\.w1\.", "mlp.fc1_g."),
    (r"(?<=\.)mlp\.w2\.", "mlp.fc1_x."),
    (r"(?<=\.)mlp\.w3\.", "mlp.fc2."),
    (r"(?<=\.)mlp\.ffn_ln\.", "mlp.norm."),
    (r"(?<=\.)attn\.inner_attn_ln\.", "attn.norm."),
)
_CONVNEXT_TO_TIMM = (
    (r"(?:^|(?<=\.))stages\.(\d+)\.(\d+)\.dwconv\.", r"stages.\1.blocks.\2.conv_dw."),
    (r"(?:^|(?<=\.))downsample_layers\.0\.(\d)\.", r"stem.\1."),
    (r"(?:^|(?<=\.))downsample_layers\.(\d)\.(\d)\.", r"stages.\1.downsample.\2."),
    (r"(?:^|(?<=\.))stages\.(\d+)\.(\d+)\.(norm\.|gamma$)", r"stages.\1.blocks.\2.\3"),
    (r"(?:^|(?<=\.))stages\.(\d+)\.(\d+)\.pwconv([12])\.", r"stages.\1.blocks.\2.mlp.fc\3."),
    (r"^((?:(?!stages\.).)*?)(?:^|(?<=\.))norm\.(weight|bias)$", r"\1head.norm.\2"),
    (r"(?:^|(?<=\.))head\.(weight|bias)$", r"head.fc.\1"),
)
_DETECTRON2_TO_TORCHVISION = (
    (r"(?:^|(?<=\.))res[2-5]\.\d+\.conv1\.", r"\g<0>"),
    (r"(?:^|(?<=\.))stem\.conv1\.norm\.", "bn1."),
    (r"(?:^|(?<=\.))stem\.conv1\.", "conv1."),
    *((rf"(?:^|(?<=\.))res{i + 1}\.(?=\d+\.)", f"layer{i}.") for i in range(1, 5)),
    (r"(?<=\.)conv([123])\.norm\.", r"bn\1."),
    (r"(?<=\.)shortcut\.norm\.", "downsample.1."),
    (r"(?<=\.)shortcut\.", "downsample.0."),
    (r"(?:^|(?<=\.))(?:fc1000|linear)\.", "fc."),
)


def _pycls_to_torchvision(stem: str, first: int) -> tuple[Rule, ...]:
    """ResNets of pycls, which counts blocks from 1; its first versions counted the stem as the first stage."""
    return (
        (rf"(?:^|(?<=\.)){stem}\.conv\.", "conv1."),
        (rf"(?:^|(?<=\.)){stem}\.bn\.", "bn1."),
        (r"(?:^|(?<=\.))s(\d)\.b(\d+)\.", lambda found: f"layer{int(found[1]) - first + 1}.{int(found[2]) - 1}."),
        (r"(?<=\d\.)f\.([abc])_bn\.", lambda found: f"bn{_PLACE[found[1]]}."),
        (r"(?<=\d\.)f\.([abc])\.", lambda found: f"conv{_PLACE[found[1]]}."),
        (r"(?<=\d\.)proj\.", "downsample.0."),
        (r"(?<=\d\.)bn\.", "downsample.1."),
        (r"(?:^|(?<=\.))head\.fc\.", "fc."),
    )


_PLACE = {"a": 1, "b": 2, "c": 3}
_REGNET = (r"(?:^|(?<=\.))s\d\.b\d+\.f\.a\.", r"\g<0>")
_PYCLS_REGNET_TO_TIMM: tuple[Rule, ...] = (
    _REGNET,
    (r"(?<=\d\.)proj\.", "downsample.conv."),
    (r"(?<=\d\.)bn\.", "downsample.bn."),
    (r"(?<=\d\.)f\.([abc])_bn\.", lambda found: f"conv{_PLACE[found[1]]}.bn."),
    (r"(?<=\d\.)f\.([abc])\.", lambda found: f"conv{_PLACE[found[1]]}.conv."),
    (r"(?<=\d\.)f\.se\.f_ex\.0\.", "se.fc1."),
    (r"(?<=\d\.)f\.se\.f_ex\.2\.", "se.fc2."),
)
_PYCLS_REGNET_TO_TORCHVISION: tuple[Rule, ...] = (
    _REGNET,
    (r"(?:^|(?<=\.))stem\.conv\.", "stem.0."),
    (r"(?:^|(?<=\.))stem\.bn\.", "stem.1."),
    (r"(?<=\d\.)proj\.", "proj.0."),
    (r"(?<=\d\.)bn\.", "proj.1."),
    (r"(?<=\d\.)f\.([abc])\.", r"f.\1.0."),
    (r"(?<=\d\.)f\.([abc])_bn\.", r"f.\1.1."),
    (r"(?<=\d\.)f\.se\.f_ex\.0\.", "f.se.fc1."),
    (r"(?<=\d\.)f\.se\.f_ex\.2\.", "f.se.fc2."),
    (
        r"(?:^|(?<=\.))s(\d)\.b(\d+)\.",
        lambda found: f"trunk_output.block{found[1]}.block{found[1]}-{int(found[2]) - 1}.",
    ),
    (r"(?:^|(?<=\.))head\.fc\.", "fc."),
)


@dataclass(frozen=True)
class Family:
    """Rules (pattern, replacement) that turn one naming into another; the first rule must match some name."""

    name: str
    rules: tuple[Rule, ...]

    def rename(self, names: dict[str, str]) -> dict[str, str] | None:
        """The renamed names; None if the first rule matches none, or if two names become one."""
        if not re.search(self.rules[0][0], "\n".join(names), re.MULTILINE):
            return None
        renamed = {}
        for name, original in names.items():
            new = name
            for pattern, replacement in self.rules:
                new = re.sub(pattern, replacement, new)
            renamed[new] = original
        return renamed if len(renamed) == len(names) else None


# timm merges patches at the beginning of the next stage. The sign keeps a name from being moved twice.
_NEXT_STAGE = tuple((rf"(?:^|(?<=\.))layers\.{i}\.downsample\.", f"layers.{i + 1}.@downsample.") for i in range(4))

_REGISTERS = (r"register_tokens$", "reg_token")

# DINOv2 trains with its blocks in chunks; any family's names may lie in them.
_CHUNKS = Family("blocks in chunks", ((r"(?:^|(?<=\.))blocks\.\d+\.(\d+)\.", r"blocks.\1."),))
FAMILIES = (
    Family("DenseNet of before 2018", ((r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.", r"\1\2."),)),
    Family(
        "torchvision ViT of before 2022",
        ((r"\.mlp\.linear_1\.", ".mlp.0."), (r"\.mlp\.linear_2\.", ".mlp.3.")),
    ),
    Family("torchvision ViT to timm", (_VIT_TO_TIMM[3], *_VIT_TO_TIMM[:3], *_VIT_TO_TIMM[4:])),
    Family("timm ViT to torchvision", _TIMM_TO_VIT),
    Family("JAX ViT to timm", _JAX_TO_TIMM),
    Family("JAX ViT to torchvision", (*_JAX_TO_TIMM, *_TIMM_TO_VIT)),
    Family("mmpretrain ViT to timm", _MMPRETRAIN_TO_TIMM),
    Family("mmpretrain ViT to torchvision", (*_MMPRETRAIN_TO_TIMM, *_TIMM_TO_VIT)),
    Family("CLIP to timm", _CLIP_TO_TIMM),
    Family("EVA-02 to timm", _EVA02_TO_TIMM),
    Family(
        "EVA-02 with a projection each to timm",
        (
            (r"(?<=\.)attn\.q_proj\.", r"\g<0>"),
            (r"(?<=\.)attn\.([qv])_bias$", r"attn.\1_proj.bias"),
            *_EVA02_TO_TIMM,
        ),
    ),
    Family("ConvNeXt to timm", _CONVNEXT_TO_TIMM),
    Family(
        "Swin to timm",
        (
            (r"(?:^|(?<=\.))layers\.\d\.blocks\.\d+\.attn\.(?=relative)", r"\g<0>"),
            *_NEXT_STAGE,
            (r"@downsample", "downsample"),
            (r"(?:^|(?<=\.))head\.(weight|bias)$", r"head.fc.\1"),
        ),
    ),
    Family("detectron2 ResNet to torchvision", _DETECTRON2_TO_TORCHVISION),
    Family("pycls ResNet to torchvision", _pycls_to_torchvision("stem", 1)),
    Family("pycls ResNet of before 2020 to torchvision", _pycls_to_torchvision("s1", 2)),
    Family("pycls RegNet to timm", _PYCLS_REGNET_TO_TIMM),
    Family("pycls RegNet to torchvision", _PYCLS_REGNET_TO_TORCHVISION),
    Family("DINOv2 to timm", (_REGISTERS,)),
    Family(
        "DINOv2 with gated layers to timm",
        ((r"(?<=\.)mlp\.w12\.", "mlp.fc1."), (r"(?<=\.)mlp\.w3\.", "mlp.fc2."), _REGISTERS),
    ),
)


_SHARED_TABLE = re.compile(r"^(.*?)rel_pos_bias\.relative_position_bias_table$", re.MULTILINE)


def _table_in_each_block(names: dict[str, str]) -> dict[str, str] | None:
    """The names with the one table of relative positions, by which BEiT is pretrained, in each block; None without."""
    found = _SHARED_TABLE.search("\n".join(names))
    if found is None:
        return None
    front = found[1]
    blocks = {block[0] for name in names if (block := re.match(rf"{re.escape(front)}blocks\.\d+\.", name))}
    tables = {f"{block}attn.relative_position_bias_table": names[found[0]] for block in blocks}
    return {name: original for name, original in names.items() if name != found[0]} | tables


def family_names(names: dict[str, str]) -> Iterator[tuple[dict[str, str], str]]:
    """The names as they are, then as each family that applies renames them, with the family's name."""
    chunked = _CHUNKS.rename(names)
    for base, words in ((names, ""), (chunked, _CHUNKS.name)):
        if base is None:
            continue
        yield base, words and f"renamed from {words}"
        for family in FAMILIES:
            renamed = family.rename(base)
            if renamed is not None:
                yield renamed, f"renamed from {' and '.join(filter(None, (words, family.name)))}"
    cloned = _table_in_each_block(names)
    if cloned is not None:
        yield cloned, "the shared table of relative positions put into each block"
