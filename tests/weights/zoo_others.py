"""Layouts of other architectures: each function gives a model, the content of a file with its weights, and another
model to load it into. The docstring says what is in the file, and which code writes it."""

import re
from typing import Any

import timm
import torch
import torchvision
from layout_parts import ARGS, TEXT, State, body, noise, optimizer, trained, under
from torch import nn
from zoo_vits import renamed, vit

Made = tuple[nn.Module, Any, nn.Module]
SWIN = {"depths": (2, 2), "num_heads": (3, 6), "num_classes": 5}
SMALL = {"depth": 2, "img_size": 32, "embed_dim": 48, "num_heads": 3, "num_classes": 5}
CLIP = (
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
)


def alexnet_in_parallel() -> Made:
    """The ImageNet example with AlexNet, its features alone in DataParallel (imagenet/main.py of pytorch/examples)."""
    return _features_in_parallel("alexnet")


def vgg_in_parallel() -> Made:
    """The ImageNet example with VGG, its features alone in DataParallel (imagenet/main.py of pytorch/examples)."""
    return _features_in_parallel("vgg11_bn")


def _features_in_parallel(name: str) -> Made:
    torch.manual_seed(0)
    source, model = (getattr(torchvision.models, name)(num_classes=5) for _ in range(2))
    for net in (source, model):  # the real ones have a gigabyte in these
        net.classifier[-3 if name == "alexnet" else 3] = nn.Identity()
        net.classifier[1 if name == "alexnet" else 0] = nn.Identity()
        net.classifier[-1] = nn.Linear(8, 5)
    state = {re.sub(r"^features\.", "features.module.", n): t for n, t in source.state_dict().items()}
    return source, {"epoch": 3, "arch": name, "state_dict": state, "best_acc1": 56.5}, model


def densenet_of_before_2018() -> Made:
    """torchvision's own DenseNet files: layers numbered behind a point (_load_state_dict of densenet.py)."""
    source, model = (torchvision.models.DenseNet(4, (2, 2), 8, num_classes=5) for _ in range(2))
    state = renamed(source.state_dict(), ((r"(denselayer\d\.(?:norm|conv))([12])", r"\1.\2"),))
    return source, {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}, model


def deit_distilled() -> Made:
    """DeiT with its distillation token, for larger images (models.py of facebookresearch/deit)."""
    source, model = (vit("deit_tiny_distilled_patch16_224", img_size=size) for size in (32, 48))
    return source, {"model": source.state_dict()}, model


def convnext() -> Made:
    """ConvNeXt of its authors (models/convnext.py of facebookresearch/ConvNeXt)."""
    options: dict[str, Any] = {"conv_mlp": False, "depths": (1, 1, 1, 1), "num_classes": 5}
    source, model = (timm.create_model("convnext_atto", **options) for _ in range(2))
    rules = (
        (r"^stem\.(\d)", r"downsample_layers.0.\1"),
        (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"\.blocks\.(\d+)\.", r".\1."),
        (r"conv_dw", "dwconv"),
        (r"mlp\.fc([12])", r"pwconv\1"),
        (r"^head\.norm", "norm"),
        (r"^head\.fc", "head"),
    )
    return source, {"model": renamed(source.state_dict(), rules)}, model


def swin() -> Made:
    """Swin of its authors: patches merged at the end of a stage, masks in the file (models/swin_transformer.py and
    utils.py of microsoft/Swin-Transformer)."""
    source, model = (timm.create_model("swin_tiny_patch4_window7_224", **SWIN) for _ in range(2))
    rules = ((r"^layers\.1\.downsample", "layers.0.downsample"), (r"head\.fc\.", "head."))
    state = renamed(source.state_dict(), rules)
    for stage, windows in enumerate((64, 16)):
        state[f"layers.{stage}.blocks.1.attn_mask"] = torch.rand(windows, 49, 49)
        for block in range(2):
            name = f"layers.{stage}.blocks.{block}.attn.relative_position_index"
            state[name] = torch.zeros(49, 49, dtype=torch.int64)
    return source, trained("model", state, lr_scheduler={"last_epoch": 3}, max_accuracy=81.2), model


def clip_visual_tower() -> Made:
    """CLIP: `visual.` beside the text tower (clip/model.py of openai/CLIP)."""
    source, model = (vit("vit_base_patch32_clip_224", embed_dim=64, num_heads=2) for _ in range(2))
    return source, {**_visual(source), **TEXT}, model


def open_clip() -> Made:
    """OpenCLIP in training: the same under `module.` (src/training/main.py of mlfoundations/open_clip)."""
    source, model = (vit("vit_base_patch32_clip_224", embed_dim=64, num_heads=2) for _ in range(2))
    return source, trained("state_dict", under("module", {**TEXT, **_visual(source)}), name="a run"), model


def _visual(source: nn.Module) -> State:
    state = renamed(body(source), CLIP)
    flat = {n: t.squeeze() if n in ("class_embedding", "positional_embedding") else t for n, t in state.items()}
    return {**under("visual", flat), "visual.proj": torch.rand(64, 32)}


def i_jepa() -> Made:
    """I-JEPA: encoder, predictor and target encoder, without a class token (src/train.py of facebookresearch/ijepa)."""
    source, model = (vit(class_token=False, global_pool="avg", fc_norm=False) for _ in range(2))
    encoder = under("module", noise(body(source)))
    blocks = vit(class_token=False, global_pool="avg", fc_norm=False, embed_dim=24).state_dict().items()
    predictor = {f"predictor_{n}": t for n, t in blocks if n.startswith(("blocks.", "norm.", "pos_embed"))}
    predictor |= under("predictor_embed", nn.Linear(48, 24).state_dict()) | {"mask_token": torch.rand(1, 1, 24)}
    predictor |= under("predictor_proj", nn.Linear(24, 48).state_dict())
    content = {
        "encoder": encoder,
        "predictor": under("module", predictor),
        "target_encoder": under("module", body(source)),
        "opt": optimizer(encoder),
        "epoch": 300,
    }
    return source, content, model


def beit() -> Made:
    """BEiT fine-tuned: a table of relative positions in each block (beit/modeling_finetune.py and utils.py of
    microsoft/unilm)."""
    source, model = (timm.create_model("beit_base_patch16_224", init_values=0.1, **SMALL) for _ in range(2))
    state = source.state_dict()
    index = {f"blocks.{i}.attn.relative_position_index": torch.zeros(5, 5, dtype=torch.int64) for i in range(2)}
    return source, trained("model", state | index, args=ARGS, scaler={"scale": 65536.0}), model


def beit_pretrained() -> Made:
    """BEiT pretrained: one table of positions for all blocks (beit/modeling_pretrain.py of microsoft/unilm)."""
    source, state, model = _shared_table()
    lm_head = under("lm_head", nn.Linear(48, 9).state_dict())
    return source, trained("model", state | lm_head, args=ARGS, scaler={"scale": 65536.0}), model


def simmim() -> Made:
    """SimMIM: `encoder.`, as BEiT's, and a decoder that is one convolution (models/simmim.py and vision_transformer.py
    of microsoft/SimMIM)."""
    source, state, model = _shared_table()
    decoder = under("decoder.0", nn.Conv2d(48, 768, 1).state_dict())
    return source, trained("model", under("encoder", state) | decoder, max_accuracy=0.0), model


def _shared_table() -> tuple[nn.Module, State, nn.Module]:
    options = {**SMALL, "init_values": 0.1, "global_pool": "token"}  # pretrained, they end with `norm`
    source, model = (timm.create_model("beit_base_patch16_224", **options) for _ in range(2))
    state = body(source)
    tables = [name for name in state if name.endswith("relative_position_bias_table")]
    table = torch.rand_like(state[tables[0]])
    with torch.no_grad():
        for name in tables:
            source.get_parameter(name).copy_(table)
    shared = {n: t for n, t in state.items() if n not in tables}
    shared["rel_pos_bias.relative_position_bias_table"] = table
    shared["rel_pos_bias.relative_position_index"] = torch.zeros(5, 5, dtype=torch.int64)
    return source, shared | {"mask_token": torch.rand(1, 1, 48)}, model


def eva_02() -> Made:
    """EVA-02: gated layers w1 to w3, tables of rotations (EVA-02/asuka/modeling_finetune.py and rope.py of
    baaivision/EVA)."""
    small = {**SMALL, "img_size": 28, "scale_mlp": True, "qkv_fused": False}
    source, model = (timm.create_model("eva02_base_patch14_224", **small) for _ in range(2))
    rules = (
        (r"mlp\.norm", "mlp.ffn_ln"),
        (r"mlp\.fc1_g", "mlp.w1"),
        (r"mlp\.fc1_x", "mlp.w2"),
        (r"mlp\.fc2", "mlp.w3"),
    )
    rules = (*rules, (r"q_proj\.bias", "q_bias"), (r"v_proj\.bias", "v_bias"))
    state = renamed(source.state_dict(), rules)
    for name in ("rope", "blocks.0.attn.rope", "blocks.1.attn.rope"):
        state |= under(name, {"freqs_cos": torch.rand(4, 16), "freqs_sin": torch.rand(4, 16)})
    return source, {"module": state}, model


def pycls_regnet_to_timm() -> Made:
    """RegNet of pycls into timm's: squeeze and excitation as `f_ex` (pycls/models/anynet.py and blocks.py)."""
    source, model = (timm.create_model("regnety_002", num_classes=5) for _ in range(2))
    rules = (
        *((rf"\.conv{i}\.bn\.", f".f.{letter}_bn.") for i, letter in enumerate("abc", 1)),
        *((rf"\.conv{i}\.conv\.", f".f.{letter}.") for i, letter in enumerate("abc", 1)),
        (r"\.se\.fc1\.", ".f.se.f_ex.0."),
        (r"\.se\.fc2\.", ".f.se.f_ex.2."),
        (r"\.downsample\.conv\.", ".proj."),
        (r"\.downsample\.bn\.", ".bn."),
    )
    return source, {"epoch": 99, "model_state": renamed(source.state_dict(), rules)}, model


def pycls_regnet_to_torchvision() -> Made:
    """RegNet of pycls into torchvision's (pycls/models/anynet.py and blocks.py)."""
    source, model = (torchvision.models.regnet_y_400mf(num_classes=5) for _ in range(2))
    rules = (
        (r"^stem\.0\.", "stem.conv."),
        (r"^stem\.1\.", "stem.bn."),
        (r"\.f\.([abc])\.0\.", r".f.\1."),
        (r"\.f\.([abc])\.1\.", r".f.\1_bn."),
        (r"\.se\.fc1\.", ".se.f_ex.0."),
        (r"\.se\.fc2\.", ".se.f_ex.2."),
        (r"\.proj\.1\.", ".bn."),
        (r"\.proj\.0\.", ".proj."),
        *((rf"^trunk_output\.block(\d)\.block\d-{i}\.", rf"s\1.b{i + 1}.") for i in range(8)),
        (r"^fc\.", "head.fc."),
    )
    return source, {"epoch": 99, "model_state": renamed(source.state_dict(), rules)}, model


OTHERS = (
    alexnet_in_parallel,
    vgg_in_parallel,
    densenet_of_before_2018,
    deit_distilled,
    convnext,
    swin,
    clip_visual_tower,
    open_clip,
    i_jepa,
    beit,
    beit_pretrained,
    simmim,
    eva_02,
    pycls_regnet_to_timm,
    pycls_regnet_to_torchvision,
)
