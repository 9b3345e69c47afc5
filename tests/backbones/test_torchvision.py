import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import get_model_weights

from lit_transfer.backbones import create_backbone, list_backbones
from lit_transfer.backbones._memory import without_memory_on_meta
from lit_transfer.backbones._torchvision import build_model, replace_first_conv
from lit_transfer.parameter_groups import param_groups

NAMES = list_backbones()
# One of each family, at the smallest size that it takes up to 64 pixels.
FAMILIES = {
    "alexnet": 64,
    "convnext_tiny": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "efficientnet_v2_s": 64,
    "googlenet": 64,
    "inception_v3": 75,
    "maxvit_t": 224,
    "mnasnet0_5": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "regnet_y_400mf": 64,
    "resnet18": 64,
    "resnext50_32x4d": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64,
    "swin_t": 64,
    "swin_v2_t": 64,
    "vgg11_bn": 64,
    "vit_b_32": 64,
}


def test_there_are_eighty() -> None:
    assert len(NAMES) == 80


@pytest.mark.parametrize("name", NAMES)
def test_each_is_cut_into_stages_without_memory(name: str) -> None:
    with torch.device("meta"):
        backbone = create_backbone(name, weights=None, in_channels=4)
    parameters = dict(backbone.named_parameters())
    assert all(parameter.is_meta for parameter in parameters.values())
    staged = [parameter for stage in backbone.trace.stages for parameter in stage.parameters]
    assert sorted(staged) == sorted(parameters)
    assert 3 < len(backbone.trace.stages) < 34
    grouped = [id(p) for group in param_groups(backbone, 0.1, 0.01) for p in dict(group["params"]).values()]
    assert sorted(grouped) == sorted(map(id, parameters.values()))
    # The classifier is the one thing that is missing, and no name is changed.
    published = get_model_weights(name)["DEFAULT"].meta["num_params"]
    extra = parameters[f"{backbone.trace.first_conv}.weight"][:, :1].numel()
    assert sum(map(torch.numel, parameters.values())) - extra + _cut_away(name, backbone.num_features) == published
    # It ran with 4 channels when it was made; the rest of it does not know how many there are.
    replace_first_conv(backbone, backbone.trace.first_conv, 1)
    conv = backbone.get_submodule(backbone.trace.first_conv)
    assert conv(torch.empty(2, 1, 32, 32, device="meta")).shape[1] == conv.out_channels


def _cut_away(name: str, features: int) -> int:
    """Number of parameters of the classifier, and of the auxiliary ones that Inception's published number holds."""
    auxiliary = 3_326_696 if name == "inception_v3" else 0
    return auxiliary + 1000 * (features if name == "maxvit_t" else features + 1)


@pytest.mark.parametrize("name", FAMILIES)
def test_one_of_each_family_runs_forward_and_backward(name: str) -> None:
    torch.manual_seed(0)
    size = FAMILIES[name]
    backbone = create_backbone(name, weights=None, input_size=size)
    with torch.device("meta"):
        upstream = without_memory_on_meta(build_model, name, 3, size)
    classifier = f"{backbone.trace.classifier}."
    assert list(backbone.state_dict()) == [key for key in upstream.state_dict() if not key.startswith(classifier)]
    features = backbone(torch.rand(2, 3, size, size))
    assert features.shape == (2, backbone.num_features)
    assert features.isfinite().all()
    features.sum().backward()
    assert not [key for key, parameter in backbone.named_parameters() if parameter.grad is None]


def test_a_logit_is_the_classifier_on_the_features() -> None:
    torch.manual_seed(0)
    upstream = torchvision.models.squeezenet1_1(weights=None).eval()
    images = torch.rand(2, 3, 64, 64)
    backbone = create_backbone("resnet18", weights=None)
    model = torchvision.models.resnet18(weights=None).eval()
    model.load_state_dict(backbone.state_dict(), strict=False)
    assert torch.equal(model.fc(backbone.eval()(images)), model(images))  # batch 2, float32, CPU
    squeeze = create_backbone(upstream).eval()
    conv = upstream.classifier[1]
    assert isinstance(conv, nn.Conv2d)
    assert squeeze(images).shape == (2, conv.in_channels)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_models_that_transform_their_input_get_the_same_values(name: str, channels: int) -> None:
    with torch.device("meta"):
        backbone = create_backbone(name, weights=None, in_channels=channels)
    raw = torch.full((1, channels, 2, 2), 0.25)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (backbone.preprocessing.mean, backbone.preprocessing.std))
    made = backbone._upstream._transform_input((raw - mean) / std)
    torch.testing.assert_close(made, torch.full((1, channels, 2, 2), -0.5))


def test_random_first_kernels_keep_the_scale_of_the_output() -> None:
    torch.manual_seed(0)
    stds = [create_backbone("resnet18", weights=None, in_channels=c).conv1.weight.std().item() for c in (3, 12)]
    assert stds[1] == pytest.approx(stds[0] / 2, rel=0.1)


def test_the_size_of_the_images_can_be_chosen() -> None:
    backbone = create_backbone("vit_b_32", weights=None, input_size=64)
    assert backbone.encoder.pos_embedding.shape == (1, 5, 768)
    assert (backbone.preprocessing.crop, backbone.preprocessing.resize) == (64, 73)


def test_a_classifier_can_be_named() -> None:
    backbone = create_backbone("alexnet", weights=None, classifier="classifier.4")
    assert backbone.num_features == 1000  # what follows the named layer stays
    assert isinstance(backbone.classifier[4], nn.Identity)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name_or_module": "resnt18"}, ValueError, "backbone 'resnt18' is not known: .* Nearest: resnet18"),
        ({"name_or_module": 18}, TypeError, "expected the name of a backbone or a module, got int"),
        (
            {"weights": "IMAGENET1K_V9"},
            ValueError,
            "weights='IMAGENET1K_V9': .* DEFAULT, IMAGENET1K_V1. Nearest: IMAGEN",
        ),
        ({"weights": "best.pt"}, ValueError, r"weights='best.pt': expected a name, an existing file, a URL, or None"),
        ({"name_or_module": "vgg16", "weights": "IMAGENET1K_FEATURES"}, ValueError, "Names for vgg16: DEFAULT, IM.*V1"),
        ({"in_channels": 0, "weights": None}, ValueError, "in_channels=0: expected a positive integer"),
        ({"input_size": 0, "weights": None}, ValueError, "input_size=0: expected a positive integer"),
        ({"name_or_module": "vit_b_32", "input_size": 65, "weights": None}, ValueError, "vit_b_32 .* input_size=65"),
        (
            {"name_or_module": "inception_v3", "input_size": 40, "weights": None},
            ValueError,
            "shape .2, 3, 40, 40.*size",
        ),
        ({"weights": None, "classifier": "head"}, ValueError, "classifier='head': expected the dotted name"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        create_backbone(**{"name_or_module": "resnet18", **arguments})


def test_weights_need_memory() -> None:
    with torch.device("meta"), pytest.raises(ValueError, match="cannot be loaded on the meta device"):
        create_backbone("resnet18")
