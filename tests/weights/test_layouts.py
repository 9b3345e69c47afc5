"""The layouts in which checkpoints come today, made by small functions from real models: the path alone loads them."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from lit_transfer.weights import WeightsError, load_weights, plan_weights

State = dict[str, Tensor]


class Narrow(torchvision.models.ResNet):
    """An eighth of the channels: the same names, and files of half a megabyte."""

    def _make_layer(self, block: Any, planes: int, *args: Any, **options: Any) -> nn.Sequential:
        return super()._make_layer(block, planes // 8, *args, **options)


def resnet(classes: int = 10) -> nn.Module:
    torch.manual_seed(classes)
    model = Narrow(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])
    model.fc = nn.Linear(64, classes)
    return model


def vit(name: str = "vit_tiny_patch16_224", **options: Any) -> nn.Module:
    torch.manual_seed(1)
    small = {"depth": 2, "img_size": 32, "embed_dim": 48, "num_heads": 3, **options}
    return timm.create_model(name, pretrained=False, num_classes=5, **small)


def body(model: nn.Module) -> State:
    """The state without the classifier."""
    return {n: t.clone() for n, t in model.state_dict().items() if not n.startswith(("fc.", "head.", "heads."))}


def under(prefix: str, state: State) -> State:
    return {f"{prefix}.{name}": tensor for name, tensor in state.items()}


def noise(state: State) -> State:
    return {name: torch.rand_like(t) if t.is_floating_point() else t for name, t in state.items()}


def projector(name: str) -> State:
    return under(name, nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)).state_dict())


def numbered(model: nn.Module) -> State:
    """As lightly saves a network: nn.Sequential(*list(model.children())[:-1])."""
    return nn.Sequential(*list(model.children())[:-1]).state_dict()


RESNETS: dict[str, Callable[[nn.Module], Any]] = {
    "torchvision": lambda m: m.state_dict(),
    "the imagenet example": lambda m: {
        "epoch": 9,
        "arch": "r",
        "state_dict": under("module", m.state_dict()),
        "best_acc1": 1.0,
    },
    "moco v1": lambda m: {
        "state_dict": {
            **under("module.encoder_q", m.state_dict()),
            **under("module.encoder_k", noise(m.state_dict())),
            "module.queue": torch.rand(8, 4),
            "module.queue_ptr": torch.zeros(1, dtype=torch.int64),
        }
    },
    "moco v2": lambda m: {
        "state_dict": {
            **under("module.encoder_q", {**body(m), **projector("fc")}),
            **under("module.encoder_k", {**noise(body(m)), **projector("fc")}),
        }
    },
    "moco v3": lambda m: {
        "state_dict": {
            **under("module.base_encoder", {**body(m), **projector("fc")}),
            **under("module.momentum_encoder", {**noise(body(m)), **projector("fc")}),
            **projector("module.predictor"),
        }
    },
    "simclr": lambda m: {"state_dict": under("backbone", {**body(m), **projector("fc")})},
    "byol": lambda m: {
        **under("online_encoder.net", m.state_dict()),
        **under("target_encoder.net", noise(m.state_dict())),
        **projector("online_predictor"),
    },
    "swav": lambda m: under(
        "module", {**body(m), **projector("projection_head"), "prototypes.weight": torch.rand(9, 4)}
    ),
    "solo-learn": lambda m: {
        "state_dict": {
            **under("backbone", body(m)),
            **under("momentum_backbone", noise(body(m))),
            **under("classifier", nn.Linear(64, 3).state_dict()),
            **projector("projector"),
        },
        "optimizer_states": [],
    },
    "lightly": lambda m: {"state_dict": {**under("backbone", numbered(m)), **projector("projection_head.layers")}},
    "lightning": lambda m: {
        "epoch": 1,
        "global_step": 3,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": {**under("model", m.state_dict()), "criterion.weight": torch.ones(10)},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5)}},
        "hyper_parameters": {"lr": 0.1},
    },
    "timm ema": lambda m: {"arch": "r", "state_dict": noise(m.state_dict()), "state_dict_ema": m.state_dict()},
    "yolo": lambda m: {"epoch": -1, "model": resnet(3), "ema": copy.deepcopy(m), "updates": 7},
    "the tutorials' pair": lambda m: {"model": resnet(10), "model_state_dict": m.state_dict(), "optimizer": {}},
    "torch.compile": lambda m: under("_orig_mod", m.state_dict()),
    "compiled in DDP": lambda m: under("module._orig_mod", m.state_dict()),
    "compiled blocks": lambda m: {
        re.sub(r"^(layer\d)\.(\d)\.", r"\1.\2._orig_mod.", n): t for n, t in m.state_dict().items()
    },
    "AveragedModel": lambda m: torch.optim.swa_utils.AveragedModel(m).state_dict(),
    "fsdp": lambda m: {
        "_fsdp_wrapped_module." + re.sub(r"^(layer\d)\.", r"\1._fsdp_wrapped_module.", n): t
        for n, t in m.state_dict().items()
    },
    "checkpointed": lambda m: {
        re.sub(r"^(layer\d)\.(\d)\.", r"\1.\2._checkpoint_wrapped_module.", n): t for n, t in m.state_dict().items()
    },
    "deepspeed": lambda m: {"module": under("_forward_module", m.state_dict())},
    "a data-parallel part": lambda m: {re.sub(r"^layer3\.", "layer3.module.", n): t for n, t in m.state_dict().items()},
    "mmcls": lambda m: {"meta": {}, "state_dict": {**under("backbone", body(m)), "head.fc.weight": torch.rand(3, 64)}},
    "a detector": lambda m: {"model": {**under("backbone.body", body(m)), "roi_heads.box.weight": torch.rand(4, 4)}},
}


@pytest.mark.parametrize("layout", RESNETS)
def test_resnets(tmp_path: Path, layout: str) -> None:
    source = resnet()
    torch.save(RESNETS[layout](source), tmp_path / "f.pth")
    for model in (resnet(10), resnet(3)):
        load_weights(model, tmp_path / "f.pth")
        wanted = body(source)
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in body(model).items())


@pytest.mark.parametrize("name", ["alexnet", "vgg11_bn"])
def test_the_imagenet_example_with_its_features_in_parallel(name: str) -> None:
    """It wraps only the features of these two: their parameters are few, and the classifier's are many."""
    with torch.device("meta"):
        source = torchvision.models.get_model(name, weights=None)
        model = torchvision.models.get_model(name, weights=None, num_classes=7)
    source.features = nn.DataParallel(source.features)
    plan = plan_weights(model, {"epoch": 3, "arch": name, "state_dict": source.state_dict(), "best_acc1": 56.5})
    assert plan.problems == ()
    assert plan.head == ("classifier.6",)
    for entry in plan.of("load"):
        assert entry.source == entry.name.replace("features.", "features.module.")
    assert {entry.name for entry in plan.of("fresh")} == {"classifier.6.weight", "classifier.6.bias"}


def test_deit_with_its_distillation_token() -> None:
    source, model = (vit("deit_tiny_distilled_patch16_224", img_size=size) for size in (32, 48))
    report = load_weights(model, {"model": source.state_dict()})
    assert report.coverage == 1
    assert "2 extra tokens kept" in report.adapted["pos_embed"]
    assert torch.equal(model.dist_token, source.dist_token)


def test_a_numbered_model_is_filled_from_a_named_file() -> None:
    source = resnet()
    model = nn.Sequential(*list(resnet(3).children())[:-1])
    load_weights(model, source.state_dict())
    assert all(torch.equal(t, numbered(source)[n]) for n, t in model.state_dict().items())


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


def test_convnext_of_its_authors() -> None:
    def make() -> nn.Module:
        return timm.create_model("convnext_atto", conv_mlp=False, depths=(1, 1, 1, 1), num_classes=5)

    source, model = make(), make()
    state = {}
    for name, tensor in source.state_dict().items():
        for pattern, new in (
            (r"^stem\.(\d)", r"downsample_layers.0.\1"),
            (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
            (r"\.blocks\.(\d+)\.", r".\1."),
            (r"conv_dw", "dwconv"),
            (r"mlp\.fc([12])", r"pwconv\1"),
            (r"^head\.norm", "norm"),
            (r"^head\.fc", "head"),
        ):
            name = re.sub(pattern, new, name)
        state[name] = tensor
    load_weights(model, {"model": state})
    assert all(torch.equal(t, source.state_dict()[n]) for n, t in model.state_dict().items())


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


def test_densenet_of_torchvisions_own_files() -> None:
    source, model = (torchvision.models.DenseNet(4, (2, 2), 8, num_classes=5) for _ in range(2))
    state = {re.sub(r"(denselayer\d\.(?:norm|conv))([12])", r"\1.\2", n): t for n, t in source.state_dict().items()}
    old = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    report = load_weights(model, old)
    assert torch.equal(
        model.features.denseblock1.denselayer1.norm1.weight, source.features.denseblock1.denselayer1.norm1.weight
    )
    assert "DenseNet" in report.edit
