"""A feature map at the end of each stage, with channels and strides told beforehand; random weights, CPU, float32."""

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from lit_transfer import create_backbone, freeze
from lit_transfer.backbones import Backbone

# Side of the images, number of stages with a map, and the stages without one.
NETWORKS: dict[str, tuple[int, list[int], list[str]]] = {
    "resnet18": (64, [2, 4, 8, 16, 32], []),
    "squeezenet1_1": (64, [2, 4, 8, 16], []),
    "mobilenet_v3_small": (64, [2, 4, 8, 16, 32], ["stage5"]),
    "convnext_tiny": (64, [4, 4, 8, 16, 32], []),
    "swin_t": (64, [4, 4, 8, 16, 32], []),
    "vit_b_16": (32, [16] * 13, []),
    "efficientnet_b0": (64, [2, 2, 4, 8, 16, 32], []),
    "densenet121": (64, [2, 4, 8, 16, 32], []),
    "alexnet": (96, [4, 8, 16], ["stage3"]),
    "vgg11_bn": (32, [1, 2, 4, 8, 16], ["stage5"]),
    "timm/resnet18": (64, [2, 4, 8, 16, 32], []),
    "timm/vit_tiny_patch16_224": (64, [16] * 13, []),
    "timm/deit_tiny_distilled_patch16_224": (64, [16] * 13, []),
    "timm/vit_small_patch14_reg4_dinov2": (28, [14] * 13, []),
    "timm/swin_tiny_patch4_window7_224": (224, [4, 4, 8, 16, 32], []),
    "timm/convnext_atto": (64, [4, 4, 8, 16, 32], []),
    "timm/mambaout_femto": (64, [4, 4, 8, 16, 32], ["stage5"]),  # 48 channels, and 48 places on a side when traced
}


@pytest.mark.parametrize("name", NETWORKS)
def test_channels_and_strides_are_told_beforehand(name: str) -> None:
    size, strides, without = NETWORKS[name]
    with torch.device("meta"):
        told = create_backbone(name, weights=None, input_size=size)
    channels = told.channels  # of a model without memory: nothing can have been computed
    assert list(told.strides.values()) == strides
    assert [stage.name for stage in told.trace.stages if stage.name not in channels] == without

    torch.manual_seed(0)
    backbone = create_backbone(name, weights=None, input_size=size).eval()
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        maps = backbone.forward_stages(images)
    assert list(maps) == list(channels) == list(backbone.channels)
    for stage, output in maps.items():
        assert output.shape[:2] == (2, channels[stage])
        # A convolution without padding cuts at most five pixels of a map off, on the whole way.
        assert 0 <= size / told.strides[stage] - output.shape[2] <= (5 if name.startswith(("alex", "squ")) else 0)
        assert output.shape[2] == output.shape[3]


@pytest.mark.parametrize("name", ["resnet18", "swin_t", "timm/deit_tiny_distilled_patch16_224"])
def test_a_place_of_the_map_is_that_place_of_the_image(name: str) -> None:
    torch.manual_seed(0)
    backbone = create_backbone(name, weights=None, input_size=112).eval()
    images = torch.rand(1, 3, 112, 112)
    changed = images.clone()
    changed[..., 28:42, 84:98] *= -2  # above on the right
    with torch.no_grad():
        before, after = backbone.forward_stages(images), backbone.forward_stages(changed)
    for stage, stride in backbone.strides.items():
        if stride > 16:  # has seen all of the image
            continue
        difference = (after[stage] - before[stage]).abs().mean(1)[0]
        row, column = divmod(int(difference.argmax()), difference.shape[1])
        assert 28 - stride <= row * stride <= 42, stage
        assert 84 - stride <= column * stride <= 98, stage


def features(backbone: Backbone, images: Tensor) -> Tensor:
    return backbone.forward_stages(images)["stage2"]


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(0)
    return create_backbone("squeezenet1_1", weights=None, input_size=64).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def test_maps_are_what_the_next_stage_takes(backbone: Backbone, images: Tensor) -> None:
    taken: dict[str, Tensor] = {}
    stages = backbone.trace.stages
    for stage, following in itertools.pairwise(stages):
        backbone.get_submodule(following.modules[0]).register_forward_pre_hook(
            lambda module, args, name=stage.name: taken.update({name: args[0].clone()})
        )
    maps = backbone.forward_stages(images)
    assert len(taken) == 3
    for name, expected in taken.items():
        assert torch.equal(maps[name], expected)
    torch.testing.assert_close(maps["stage3"].mean((2, 3)), backbone(images))
    assert maps["stem"].shape == (2, 64, 31, 47)


def test_a_map_that_the_model_overwrites_is_kept() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 2, 2),
        nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 5, 2, 2), nn.Conv2d(5, 5, 1)),
        nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(5, 6, 2, 2), nn.Conv2d(6, 6, 1)),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)),
    )
    backbone = create_backbone(model, input_size=32)
    images = torch.rand(2, 3, 32, 32)
    stem = backbone.forward_stages(images)["stem"]
    assert torch.equal(stem, model[0](images))
    assert (stem < 0).any()
    stem.square().sum().backward()  # ReLU and square would otherwise have one tensor
    assert model[0].weight.grad is not None


def test_gradients_flow_into_every_stage_up_to_the_map(backbone: Backbone, images: Tensor) -> None:
    features(backbone, images).sum().backward()
    with_gradient = {name for name, p in backbone.named_parameters() if p.grad is not None}
    assert with_gradient == {name for stage in backbone.trace.stages[:3] for name in stage.parameters}


def test_frozen_stages_stay_frozen(images: Tensor) -> None:
    torch.manual_seed(0)
    backbone = create_backbone("resnet18", weights=None, input_size=64)
    freeze(backbone, ["stem", "stage1", "stage2"])
    mean = backbone.bn1.running_mean.clone()
    maps = backbone.forward_stages(images)
    assert torch.equal(backbone.bn1.running_mean, mean)
    assert [maps[name].requires_grad for name in maps] == [False, False, False, True, True]


@pytest.mark.parametrize("what", ["layers", "method", "in place", "stage"])
@torch.no_grad()  # torch 2.15's compiler warns of its own look at the gradient of a tensor that is no leaf
def test_compiled_it_gives_the_same(images: Tensor, what: str) -> None:
    torch.manual_seed(0)
    backbone = create_backbone("resnet18", weights=None, input_size=64).eval()
    expected = backbone.forward_stages(images)
    compiled = copy.deepcopy(backbone)
    run = compiled.forward_stages
    if what == "layers":
        compiled.layer1.compile(backend="eager")
    elif what == "in place":
        compiled.compile(backend="eager")
    elif what == "method":
        run = torch.compile(run, backend="eager")
    else:
        compiled.layer1 = torch.compile(compiled.layer1, backend="eager")
    for _ in range(2):
        maps = run(images)
        for name, output in expected.items():
            torch.testing.assert_close(maps[name], output)
    assert list(maps) == list(expected)


def test_other_channels_and_sizes(images: Tensor) -> None:
    backbone = create_backbone("convnext_tiny", weights=None, in_channels=4, input_size=32).eval()
    maps = backbone.forward_stages(torch.rand(2, 4, 64, 96))
    assert [maps[name].shape[2:] for name in maps] == [(64 // s, 96 // s) for s in backbone.strides.values()]


def test_hooks_are_gone_and_copies_have_maps_of_their_own(backbone: Backbone, images: Tensor) -> None:
    maps, other = backbone.forward_stages(images), copy.deepcopy(backbone)
    assert not any(module._forward_hooks for module in backbone.modules())
    with torch.no_grad():
        other.get_parameter("features.0.weight").zero_()
    assert not torch.equal(other.forward_stages(images)["stem"], maps["stem"])
    assert torch.equal(backbone.forward_stages(images)["stem"], maps["stem"])


def test_without_a_map_it_says_so() -> None:
    with torch.device("meta"):
        assert create_backbone("timm/hiera_tiny_224", weights=None).channels == {}  # has tokens in an order of its own
    vectors = create_backbone(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5), nn.Linear(5, 2)), input_size=8)
    with pytest.raises(ValueError, match="no stage of Sequential gives a feature map: expected outputs that grow"):
        vectors.forward_stages(torch.rand(2, 3, 8, 8))


def test_a_unit_that_does_not_run_is_named(backbone: Backbone, images: Tensor) -> None:
    assert backbone.channels
    backbone._upstream.forward = lambda images: images
    with pytest.raises(ValueError, match=r"did not call what gives the map of stem \(features.1\), stage1"):
        backbone.forward_stages(images)


@pytest.mark.parametrize("name", ["squeezenet1_1", "swin_t", "timm/resnet18"])
def test_a_backbone_may_give_its_last_map_which_averages_to_the_features(name: str) -> None:
    torch.manual_seed(0)
    backbone = create_backbone(name, weights=None, input_size=64).eval()
    images, told = torch.rand(2, 3, 64, 64), str(backbone)
    features = backbone(images)
    backbone.give_map()
    last = backbone(images)
    assert last.shape[:2] == (2, backbone.num_features)
    torch.testing.assert_close(last.mean((2, 3)), features)
    torch.testing.assert_close(copy.deepcopy(backbone)(images), last)
    assert "gives the map of" in str(backbone)  # a cache of features goes by it
    backbone.give_map(False)
    assert torch.equal(backbone(images), features)
    assert str(backbone) == told


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("mobilenet_v3_small", "stage5, its last stage, gives vectors"),
        ("convnext_tiny", "classifier.0 works on what is pooled"),
    ],
)
def test_a_backbone_without_a_last_map_refuses(name: str, why: str) -> None:
    with torch.device("meta"):
        backbone = create_backbone(name, weights=None, input_size=64)
    with pytest.raises(ValueError, match=rf"{name} has no last feature map .*: {why}. Choose another"):
        backbone.give_map()
