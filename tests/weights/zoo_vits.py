"""Layouts of vision transformers, each made from the state of timm's model without its head: what is in the file, and
which code writes it."""

import re
from typing import Any

import timm
import torch
import torchvision
from layout_parts import ARGS, TEXT, State, dino_head, noise, normed_projector, optimizer, trained, under
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
    """DeiT: under `model`, and its running mean, which is taken (main.py of facebookresearch/deit)."""
    return trained("model", noise(s), model_ema=s, lr_scheduler={"last_epoch": 3}, args=ARGS)


def dino(s: State) -> Any:
    """DINO: student and teacher, which is taken (main_dino.py of facebookresearch/dino)."""
    student = under("module", under("backbone", noise(s)) | dino_head("head"))
    teacher = under("backbone", s) | dino_head("head")
    return trained("student", student, teacher=teacher, args=ARGS, dino_loss={"center": torch.rand(1, 8)})


def ibot(s: State) -> Any:
    """iBOT: as DINO, the student with a masked embedding, prototypes twice (main_ibot.py and models/head.py of
    bytedance/ibot)."""
    head = dino_head("head", "last_layer2")
    student = under("module", under("backbone", noise(s) | {"masked_embed": torch.rand(1, 48)}) | head)
    centers = {"center": torch.rand(1, 8), "center2": torch.rand(1, 1, 8)}
    return trained("student", student, teacher=under("backbone", s) | head, args=ARGS, ibot_loss=centers)


def dinov2(s: State) -> Any:
    """DINOv2 in training: the teacher's backbone beside its heads (dinov2/train/train.py and ssl_meta_arch.py of
    facebookresearch/dinov2)."""
    heads = dino_head("dino_head") | dino_head("ibot_head")
    return {"teacher": under("backbone", s | {"mask_token": torch.rand(1, 48)}) | heads}


def dinov2_in_chunks(s: State) -> Any:
    """DINOv2 with its blocks in one chunk (block_chunks of dinov2/models/vision_transformer.py)."""
    return {re.sub(r"^blocks\.(\d)\.", r"blocks.0.\1.", n): t for n, t in s.items()} | {"mask_token": torch.rand(1, 48)}


def dinov2_in_two_chunks(s: State) -> Any:
    """DINOv2 with its blocks in two chunks, counted through (block_chunks of dinov2/models/vision_transformer.py)."""
    chunked = {re.sub(r"^blocks\.(\d)\.", r"blocks.\1.\1.", n): t for n, t in s.items()}
    return chunked | {"mask_token": torch.rand(1, 48)}


def moco_v3(s: State) -> Any:
    """MoCo v3: base and momentum encoder, predictor (moco/builder.py and main_moco.py of facebookresearch/moco-v3)."""
    base = under("base_encoder", s | normed_projector("head", hidden=2))
    momentum = under("momentum_encoder", noise(s) | normed_projector("head", hidden=2))
    state = under("module", base | momentum | normed_projector("predictor"))
    return trained("state_dict", state, arch="vit_base", scaler={"scale": 65536.0})


def mae(s: State) -> Any:
    """MAE in training: encoder and decoder side by side (models_mae.py and util/misc.py of facebookresearch/mae)."""
    blocks = vit(embed_dim=24).state_dict().items()
    decoder = {f"decoder_{n}": t for n, t in blocks if n.startswith(("blocks.", "norm.", "pos_embed"))}
    decoder |= under("decoder_embed", nn.Linear(48, 24).state_dict())
    decoder |= under("decoder_pred", nn.Linear(24, 768).state_dict())
    return trained("model", s | {"mask_token": torch.rand(1, 1, 24)} | decoder, args=ARGS, scaler={"scale": 65536.0})


def msn(s: State) -> Any:
    """MSN: encoder, target encoder, prototypes (src/msn_train.py of facebookresearch/msn)."""
    layers = {"fc1": nn.Linear(48, 8), "bn1": nn.BatchNorm1d(8), "fc2": nn.Linear(8, 8), "fc3": nn.Linear(8, 4)}
    head = under("fc", nn.ModuleDict(layers).state_dict())
    encoder = under("module", noise(s) | head)
    more = {"prototypes": torch.rand(4, 8), "epoch": 100, "loss": 2.5, "batch_size": 64, "world_size": 16, "lr": 0.001}
    return {"encoder": encoder, "opt": optimizer(encoder), "target_encoder": under("module", s | head), **more}


def torchvision_itself(s: State) -> Any:
    """torchvision (torchvision/models/vision_transformer.py)."""
    return renamed(s, TO_TORCHVISION)


def torchvision_of_before_2022(s: State) -> Any:
    """torchvision with the first names of its MLP (MLPBlock._load_from_state_dict, vision_transformer.py)."""
    return renamed(s, (*TO_TORCHVISION, (r"\.mlp\.0\.", ".mlp.linear_1."), (r"\.mlp\.3\.", ".mlp.linear_2.")))


def mmpretrain(s: State) -> Any:
    """mmpretrain: `backbone.layers`, feed-forward in two lists (mmpretrain/models/backbones/vision_transformer.py of
    open-mmlab/mmpretrain)."""
    classifier = under("head.layers.head", nn.Linear(48, 3).state_dict())
    return {"meta": {}, "state_dict": under("backbone", renamed(s, TO_MMPRETRAIN)) | classifier}


def open_clip_of_timm(s: State) -> Any:
    """OpenCLIP with a tower of timm: `visual.trunk.` (src/open_clip/timm_model.py of mlfoundations/open_clip)."""
    tower = under("visual.trunk", s) | {"visual.head.proj.weight": torch.rand(32, 48)}
    return trained("state_dict", under("module", TEXT | tower), name="a run")


VITS = (
    timm_itself,
    deit,
    dino,
    ibot,
    dinov2,
    dinov2_in_chunks,
    dinov2_in_two_chunks,
    moco_v3,
    mae,
    msn,
    torchvision_itself,
    torchvision_of_before_2022,
    mmpretrain,
    open_clip_of_timm,
)
