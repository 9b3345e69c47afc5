"""Layouts of vision transformers, each made from the state of timm's model without its head: what is in the file, and
which code writes it."""

import re
from typing import Any

import timm
import torch
import torchvision
from layout_parts import State, noise, projector, under
from torch import nn

TO_TORCHVISION = (
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
)
TO_MMPRETRAIN = (
    (r"^blocks\.(\d+)\.", r"layers.\1."),
    (r"\.norm([12])\.", r".ln\1."),
    (r"mlp\.fc1", "ffn.layers.0.0"),
    (r"mlp\.fc2", "ffn.layers.1"),
    (r"^patch_embed\.proj", "patch_embed.projection"),
    (r"^norm\.", "ln1."),
)


def renamed(state: State, rules: tuple[tuple[str, str], ...]) -> State:
    """Rename by patterns, one after the other."""
    names = {}
    for name, tensor in state.items():
        for pattern, new in rules:
            name = re.sub(pattern, new, name)
        names[name] = tensor
    return names


def vit(name: str = "vit_tiny_patch16_224", **options: Any) -> nn.Module:
    torch.manual_seed(1)
    small = {"depth": 2, "img_size": 32, "embed_dim": 48, "num_heads": 3, **options}
    return timm.create_model(name, pretrained=False, num_classes=5, **small)


def torchvision_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(32, 16, 2, 3, 48, 192, num_classes=5)


def timm_itself(s: State) -> Any:
    """timm: a state dict (timm/models/vision_transformer.py)."""
    return s


def deit(s: State) -> Any:
    """DeiT: under `model` (main.py of facebookresearch/deit)."""
    return {"model": s}


def dino(s: State) -> Any:
    """DINO: student and teacher, which is taken (main_dino.py of facebookresearch/dino)."""
    student = under("module.backbone", noise(s)) | {"module.head.mlp.0.weight": torch.rand(4, 48)}
    teacher = under("backbone", s) | {"head.mlp.0.weight": torch.rand(4, 48)}
    return {"student": student, "teacher": teacher, "epoch": 3, "dino_loss": {"center": torch.rand(1, 8)}}


def ibot(s: State) -> Any:
    """iBOT: as DINO, with a masked embedding and one head for both tasks (main_ibot.py of bytedance/ibot)."""
    head = {"mlp.0.weight": torch.rand(4, 48), "last_layer.weight_v": torch.rand(9, 4)}
    student = under("module.backbone", noise(s) | {"masked_embed": torch.rand(1, 48)}) | under("module.head", head)
    return {"student": student, "teacher": under("backbone", s) | under("head", head), "ibot_loss": {}}


def dinov2(s: State) -> Any:
    """DINOv2 in training: the teacher's backbone beside its head (dinov2/train/ssl_meta_arch.py)."""
    head = under("dino_head", projector("mlp"))
    return {"teacher": under("backbone", s) | head | {"backbone.mask_token": torch.rand(1, 48)}}


def dinov2_in_chunks(s: State) -> Any:
    """DINOv2 with its blocks in chunks (block_chunks of dinov2/models/vision_transformer.py)."""
    return {re.sub(r"^blocks\.(\d)\.", r"blocks.0.\1.", n): t for n, t in s.items()}


def moco_v3(s: State) -> Any:
    """MoCo v3: base and momentum encoder (moco/builder.py of facebookresearch/moco-v3)."""
    base, momentum = (s | projector("head"), noise(s) | projector("head"))
    return {"state_dict": {**under("module.base_encoder", base), **under("module.momentum_encoder", momentum)}}


def mae(s: State) -> Any:
    """MAE: encoder and decoder side by side (models_mae.py of facebookresearch/mae)."""
    return {"model": s | {"mask_token": torch.rand(1, 1, 8), "decoder_blocks.0.norm1.weight": torch.rand(8)}}


def msn(s: State) -> Any:
    """MSN: encoder, target encoder, prototypes (src/msn_train.py of facebookresearch/msn)."""
    target = under("module", s | projector("fc"))
    return {
        "encoder": under("module", noise(s) | projector("fc")),
        "target_encoder": target,
        "prototypes": torch.rand(4, 8),
    }


def simmim(s: State) -> Any:
    """SimMIM: `encoder.` and a decoder that is one convolution (models/simmim.py of microsoft/SimMIM)."""
    decoder = {"decoder.0.weight": torch.rand(8, 48, 1, 1), "decoder.0.bias": torch.rand(8)}
    return {"model": under("encoder", s | {"mask_token": torch.rand(1, 1, 48)}) | decoder, "epoch": 7}


def torchvision_itself(s: State) -> Any:
    """torchvision (torchvision/models/vision_transformer.py)."""
    return renamed(s, TO_TORCHVISION)


def torchvision_of_before_2022(s: State) -> Any:
    """torchvision with the first names of its MLP (MLPBlock._load_from_state_dict, vision_transformer.py)."""
    return renamed(s, (*TO_TORCHVISION, (r"\.mlp\.0\.", ".mlp.linear_1."), (r"\.mlp\.3\.", ".mlp.linear_2.")))


def mmpretrain(s: State) -> Any:
    """mmpretrain: `backbone.layers`, feed-forward in two lists (models/backbones/vision_transformer.py)."""
    return {
        "meta": {},
        "state_dict": under("backbone", renamed(s, TO_MMPRETRAIN)) | {"head.layers.head.bias": torch.rand(3)},
    }


def open_clip_of_timm(s: State) -> Any:
    """OpenCLIP with a tower of timm: `visual.trunk.` (src/open_clip/timm_model.py of mlfoundations/open_clip)."""
    text = {"transformer.resblocks.0.ln_1.weight": torch.rand(64), "token_embedding.weight": torch.rand(9, 64)}
    tower = under("visual.trunk", s) | {"visual.head.proj.weight": torch.rand(32, 48)}
    return {"epoch": 1, "state_dict": under("module", tower | text | {"logit_scale": torch.tensor(1.0)})}


VITS = (
    timm_itself,
    deit,
    dino,
    ibot,
    dinov2,
    dinov2_in_chunks,
    moco_v3,
    mae,
    msn,
    simmim,
    torchvision_itself,
    torchvision_of_before_2022,
    mmpretrain,
    open_clip_of_timm,
)
