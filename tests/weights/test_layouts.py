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
from layout_parts import State, body, noise, projector, under
from torch import nn

from lit_transfer.weights import load_weights, plan_weights


class Narrow(torchvision.models.ResNet):
    """An eighth of the channels: the same names, and files of half a megabyte."""

    def _make_layer(self, block: Any, planes: int, *args: Any, **options: Any) -> nn.Sequential:
        return super()._make_layer(block, planes // 8, *args, **options)


def resnet(classes: int = 10) -> nn.Module:
    torch.manual_seed(classes)
    model = Narrow(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])
    model.fc = nn.Linear(64, classes)
    return model


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


def test_a_numbered_model_is_filled_from_a_named_file() -> None:
    source = resnet()
    model = nn.Sequential(*list(resnet(3).children())[:-1])
    load_weights(model, source.state_dict())
    assert all(torch.equal(t, numbered(source)[n]) for n, t in model.state_dict().items())


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


def test_densenet_of_torchvisions_own_files() -> None:
    source, model = (torchvision.models.DenseNet(4, (2, 2), 8, num_classes=5) for _ in range(2))
    state = {re.sub(r"(denselayer\d\.(?:norm|conv))([12])", r"\1.\2", n): t for n, t in source.state_dict().items()}
    old = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    report = load_weights(model, old)
    assert torch.equal(
        model.features.denseblock1.denselayer1.norm1.weight, source.features.denseblock1.denselayer1.norm1.weight
    )
    assert "DenseNet" in report.edit
