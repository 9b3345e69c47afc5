import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lit_transfer.stages import Trace, trace_stages


def traced(name: str, **options: object) -> Trace:
    with torch.device("meta"):
        return trace_stages(torchvision.models.get_model(name, weights=None, **options))


def with_parameters(trace: Trace) -> list[list[str]]:
    """For each stage, the units that hold parameters."""
    return [
        [unit for unit in stage.modules if any(name.startswith(f"{unit}.") for name in stage.parameters)]
        for stage in trace.stages
    ]


def test_resnet_has_the_stages_that_everyone_knows() -> None:
    trace = traced("resnet18")
    assert [stage.name for stage in trace.stages] == ["stem", "stage1", "stage2", "stage3", "stage4", "head"]
    assert with_parameters(trace) == [["conv1", "bn1"], ["layer1"], ["layer2"], ["layer3"], ["layer4"], ["fc"]]
    assert trace.stages[0].modules == ("conv1", "bn1", "relu")
    assert trace.stages[1].modules == ("maxpool", "layer1")
    assert [stage.output_shape for stage in trace.stages][3:] == [(256, 14, 14), (512, 7, 7), (1000,)]
    assert (trace.classifier, trace.feature_shape, trace.first_conv) == ("fc", (512,), "conv1")


@pytest.mark.parametrize(
    ("name", "first_units"),
    [
        ("alexnet", ["features.0", "features.3", "features.6", "classifier.1", "classifier.6"]),
        ("vgg11_bn", [*(f"features.{i}" for i in (0, 4, 8, 15, 22)), "classifier.0", "classifier.6"]),
        ("squeezenet1_1", ["features.0", "features.3", "features.6", "features.9", "classifier.1"]),
        ("densenet121", ["features.conv0", "features.denseblock1", *(f"features.transition{i}" for i in (1, 2, 3))]),
        ("inception_v3", ["Conv2d_1a_3x3", "Conv2d_3b_1x1", "Mixed_5b", "Mixed_6a", "Mixed_7a", "fc"]),
        ("mobilenet_v3_small", [*(f"features.{i}" for i in (0, 1, 2, 4, 9)), "classifier.0", "classifier.3"]),
        ("efficientnet_b0", [*(f"features.{i}" for i in (0, 1, 2, 3, 4, 6)), "classifier.1"]),
        ("convnext_tiny", [*(f"features.{i}" for i in (0, 1, 2, 4, 6)), "classifier.2"]),
        ("swin_t", [*(f"features.{i}" for i in (0, 1, 2, 4, 6)), "head"]),
        ("maxvit_t", ["stem", *(f"blocks.{i}" for i in range(4)), "classifier.2", "classifier.5"]),
        ("shufflenet_v2_x1_0", ["conv1", "stage2", "stage3", "stage4", "fc"]),
        ("mnasnet1_0", [*(f"layers.{i}" for i in (0, 8, 9, 10, 12)), "classifier.1"]),
    ],
)
def test_a_stage_begins_where_the_resolution_changes(name: str, first_units: list[str]) -> None:
    options = {"init_weights": False} if name == "inception_v3" else {}
    firsts = [units[0] for units in with_parameters(traced(name, **options))]
    assert firsts[: len(first_units)] == first_units


def test_regnet_blocks_are_not_taken_apart() -> None:
    model = nn.Sequential(*list(torchvision.models.regnet_y_400mf(weights=None).children())[:2])
    blocks = [f"1.block{number}" for number in (1, 2, 3, 4)]
    assert [units[0] for units in with_parameters(trace_stages(model, classifier=None))][:5] == ["0", *blocks]


def test_a_transformer_has_a_stage_for_each_block() -> None:
    trace = traced("vit_b_32")
    stages = trace.stages
    assert [stage.name for stage in stages] == ["stem", *(f"stage{number}" for number in range(1, 13)), "head"]
    assert {"class_token", "encoder.pos_embedding", "conv_proj.weight"} < {*stages[0].parameters}
    assert stages[12].modules == ("encoder.layers.encoder_layer_11", "encoder.ln")


def test_a_layer_after_pooling_does_not_hide_the_blocks() -> None:
    trace = traced("vit_b_32", representation_size=64)
    assert [stage.modules for stage in trace.stages][-2:] == [("heads.pre_logits", "heads.act"), ("heads.head",)]
    assert len(trace.stages) == 15


def test_a_large_layer_after_pooling_does_not_hide_the_trunk() -> None:
    block = [
        nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2), nn.Conv2d(2 * width, 2 * width, 1)) for width in (4, 8, 16)
    ]
    last = nn.Sequential(nn.Conv2d(32, 256, 1), nn.BatchNorm2d(256), nn.Flatten())
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(*block), nn.AdaptiveAvgPool2d(1), last, nn.Linear(256, 9))
    assert with_parameters(trace_stages(model, 64)) == [["0"], ["1.0"], ["1.1"], ["1.2"], ["3"], ["4"]]


class Gate(nn.Module):
    """Squeeze and excitation, written into a block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.squeeze, self.excite = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1)
        self.last = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.last(x * self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid())


class Sum(nn.Module):
    """A residual block whose shortcut is computed first."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.short = nn.Conv2d(width, out, 1, stride=2)
        self.one, self.two = nn.Conv2d(width, out, 3, padding=1), nn.Conv2d(out, out, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.short(x) + self.two(self.one(x).relu())


@pytest.mark.parametrize("block", [Gate(32), Sum(32, 32)])
def test_a_block_with_a_detour_is_one_unit(block: nn.Module) -> None:
    trunk = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 16, 3, 2), nn.Conv2d(16, 32, 3, 2), block)
    trace = trace_stages(nn.Sequential(trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4)), 64)
    assert "0.3" in {unit for stage in trace.stages for unit in stage.modules}


def test_a_wrapped_model_has_the_stages_of_the_model() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = torchvision.models.resnet18(weights=None, num_classes=32)
            self.last = nn.Linear(32, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.net(x))

    with torch.device("meta"):
        units = with_parameters(trace_stages(Wrapper(), 64))
    layers = [[f"net.layer{number}"] for number in (1, 2, 3, 4)]
    assert units == [["net.conv1", "net.bn1"], *layers, ["net.fc"], ["last"]]


def test_stages_do_not_depend_on_the_order_of_registration() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(16, 3)
            self.blocks = nn.ModuleDict({"b": nn.Conv2d(8, 16, 3, 2), "a": nn.Conv2d(4, 8, 3, 2)})
            self.stem = nn.Conv2d(3, 4, 3, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.blocks["b"](self.blocks["a"](self.stem(x)))
            return self.out(x.mean((2, 3)))

    trace = trace_stages(Backwards(), 64)
    assert [stage.modules for stage in trace.stages] == [("stem",), ("blocks.a",), ("blocks.b",), ("out",)]
    assert trace.first_conv == "stem"


LAYERS = ("conv", "down", "norm", "relu", "pool", "block", "drop")


def layer(kind: str, width: int, out: int) -> nn.Module:
    made = {
        "conv": lambda: nn.Conv2d(width, out, 3, padding=1),
        "down": lambda: nn.Conv2d(width, out, 3, stride=2, padding=1),
        "norm": lambda: nn.BatchNorm2d(width),
        "relu": lambda: nn.ReLU(inplace=True),
        "pool": lambda: nn.MaxPool2d(2, ceil_mode=True),
        "block": lambda: nn.Sequential(nn.Conv2d(width, out, 1), nn.BatchNorm2d(out), nn.Conv2d(out, out, 1)),
        "drop": lambda: nn.Dropout(),
    }
    return made[kind]()


@given(kinds=st.lists(st.sampled_from(LAYERS), max_size=12), nested=st.integers(0, 3), head=st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_parameter_is_in_one_stage_and_every_stage_has_a_matrix(
    kinds: list[str], nested: int, head: bool
) -> None:
    layers, width = [], 3
    for number, kind in enumerate(kinds):
        out = 4 + number
        layers.append(layer(kind, width, out))
        width = out if kind in {"conv", "down", "block"} else width
    module: nn.Module = nn.Sequential(*layers)
    for _ in range(nested):
        module = nn.Sequential(module)
    if head:
        module = nn.Sequential(module, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, width + 5))
    trace = trace_stages(module, 32)
    parameters = dict(module.named_parameters())
    assert sorted(name for stage in trace.stages for name in stage.parameters) == sorted(parameters)
    units = [unit for stage in trace.stages for unit in stage.modules]
    assert len(units) == len(set(units))
    assert (trace.stages[-1].name == "head") == (trace.classifier is not None) if trace.stages else not parameters
    if any(parameter.ndim > 1 for parameter in parameters.values()):
        body = [stage for stage in trace.stages if stage.name != "head"]
        held = [any(parameters[name].ndim > 1 for name in stage.parameters) for stage in body]
        assert all(held) or len(body) == 1
    assert [stage.name for stage in trace.stages if stage.name != "head"] == [
        "stem" if number == 0 else f"stage{number}" for number in range(len(trace.stages) - bool(trace.classifier))
    ]
