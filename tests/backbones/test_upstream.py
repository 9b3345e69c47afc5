import pytest
import torch
from torch import nn

from lit_transfer.backbones import guess_backbone, upstream_model
from lit_transfer.weights import StateDict, open_checkpoint


def state_of(model: nn.Module, prefix: str = "") -> StateDict:
    return open_checkpoint({prefix + name: tensor for name, tensor in model.state_dict().items()}).state_dict()


@pytest.mark.parametrize(
    "name",
    [
        "alexnet",
        "convnext_tiny",
        "efficientnet_b0",
        "mnasnet0_75",
        "mobilenet_v2",
        "mobilenet_v3_small",
        "regnet_x_400mf",
        "resnet34",
        "resnext50_32x4d",
        "shufflenet_v2_x1_0",
        "squeezenet1_0",
        "swin_v2_t",
        "vgg13_bn",
        "vit_b_32",
    ],
)
def test_the_model_that_a_file_fills_is_found(name: str) -> None:
    model, trace = upstream_model(name, num_outputs=7)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model.get_parameter(f"{trace.classifier}.weight").shape[0] == 7
    assert guess_backbone(state_of(model, "module.")) == name


def test_what_fills_none_is_not_guessed() -> None:
    resnet, _ = upstream_model("resnet18")
    resnet.layer4 = nn.Identity()
    assert guess_backbone(state_of(resnet)) is None
    assert guess_backbone(state_of(nn.Linear(2, 2))) is None


def test_channels_size_and_timm() -> None:
    model, _ = upstream_model("vit_b_32", in_channels=1, input_size=64)
    assert model.conv_proj.weight.shape[1] == 1
    assert model.encoder.pos_embedding.shape[1] == 5
    model, trace = upstream_model("timm/resnet10t", num_outputs=3, in_channels=2, input_size=64)
    assert model.conv1[0].weight.shape[1] == 2
    assert model.get_submodule(trace.classifier).weight.shape == (3, 512)
    assert torch.get_default_device().type == "cpu"


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(ValueError, match="resnet18"):
        upstream_model("resnet19")
