import random
import warnings
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from lit_transfer.stages import trace_stages


class Net(nn.Module):
    """A small classifier of images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 16, 3, stride=2)
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(16, 5)

    def features(self, x: Tensor) -> Tensor:
        return self.deep(self.norm(self.conv(x)).relu()).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.drop(self.features(x)))


class LooksAtValues(Net):
    """Runs on values only, not on shapes."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if float(x.sum()) >= 0 else -x)


def snapshot(module: nn.Module) -> list[Any]:
    return [
        (m, m.training, set(m.__dict__), len(m._forward_hooks), len(m._forward_pre_hooks), [*m._buffers])
        for m in module.modules()
    ]


@pytest.mark.parametrize("kind", [Net, LooksAtValues])
def test_the_module_and_torch_are_left_as_they_were(kind: type[Net]) -> None:
    module = kind()
    module.norm.eval()
    values = {name: value.clone() for name, value in module.state_dict().items()}
    parameters = dict(module.named_parameters())
    before, states = snapshot(module), (torch.get_rng_state(), random.getstate())
    with torch.enable_grad(), warnings.catch_warnings(record=True) as caught:
        trace_stages(module, 32)
        assert torch.is_grad_enabled()
    assert snapshot(module) == before
    assert all(parameter is parameters[name] for name, parameter in module.named_parameters())
    assert all(torch.equal(value, values[name]) for name, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert not caught


def test_a_cache_that_the_forward_fills_is_emptied_again() -> None:
    class Caches(Net):
        def __init__(self) -> None:
            super().__init__()
            self.table: Tensor | None = None
            self.tables: dict[int, Tensor] = {}

        def forward(self, x: Tensor) -> Tensor:
            if self.table is None:
                self.table = torch.arange(16, device=x.device).float()
                self.tables[0] = self.table
                self.register_buffer("made", self.table)
            return self.out(self.features(x) + self.table)

    module = Caches()
    trace_stages(module, 32)
    assert module.table is None
    assert module.tables == {}
    assert "made" not in module._buffers
    assert module(torch.zeros(1, 3, 32, 32)).shape == (1, 5)


def test_an_error_names_the_cause_and_leaves_no_hooks() -> None:
    module = Net()
    before = snapshot(module)
    with pytest.raises(ValueError, match=r"Net does not run on input of shape \(2, 4, 32, 32\): RuntimeError: .*in_ch"):
        trace_stages(module, 32, in_channels=4)
    assert snapshot(module) == before


def test_a_module_is_built_and_traced_in_inference_mode_too() -> None:
    expected = trace_stages(torchvision.models.resnet18(weights=None)).stages
    with torch.inference_mode():
        assert trace_stages(torchvision.models.resnet18(weights=None)).stages == expected
        assert trace_stages(LooksAtValues(), 32).stages == trace_stages(Net(), 32).stages


def test_nothing_is_computed_where_shapes_are_enough() -> None:
    with torch.device("meta"):
        module = torchvision.models.vit_h_14(weights=None)
    trace = trace_stages(module)
    assert trace.feature_shape == (1280,)
    assert len(trace.stages) == 34


def test_a_module_that_looks_at_values_is_run_for_real() -> None:
    assert trace_stages(LooksAtValues(), 32).stages == trace_stages(Net(), 32).stages


def test_a_recurrent_net_is_traced() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.rnn = nn.Embedding(10, 8), nn.LSTM(8, 16, batch_first=True)
            self.out = nn.Linear(16, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.out(self.rnn(self.embed(tokens))[0][:, -1])

    trace = trace_stages(Reader(), inputs=torch.zeros(2, 7, dtype=torch.long))
    assert [stage.modules for stage in trace.stages] == [("embed",), ("rnn",), ("out",)]
    assert trace.unused == ()


def test_inputs_may_be_a_tuple_or_named() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.out = nn.Linear(4, 8), nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
            return {"logits": self.out(self.left(a) + self.right(b))}

    a, b = torch.zeros(3, 4), torch.zeros(3, 6)
    trace = trace_stages(Two(), inputs=(a, b))
    assert trace == trace_stages(Two(), inputs={"a": a, "b": b})
    assert [stage.modules for stage in trace.stages] == [("left",), ("right",), ("out",)]
    assert trace.feature_shape == (8,)


def test_a_lazy_module_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"0\.weight has no shape yet: run Sequential once"):
        trace_stages(nn.Sequential(nn.LazyLinear(3)))


def test_parameters_that_never_run_are_listed_and_placed() -> None:
    with torch.device("meta"):
        module = torchvision.models.googlenet(weights=None, init_weights=False, aux_logits=True)
    trace = trace_stages(module)
    assert trace.unused
    assert all(name.startswith("aux") for name in trace.unused)
    placed = {name: stage.name for stage in trace.stages for name in stage.parameters}
    assert {placed[name] for name in trace.unused} == {"stage4"}
    assert placed.keys() == dict(module.named_parameters()).keys()


def test_parameters_without_a_module_of_their_own() -> None:
    class Own(Net):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(3, 1, 1))
            self.scale = nn.Parameter(torch.ones(16))
            self.temperature = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.features(x + self.shift) * self.scale) / self.temperature

    stages = trace_stages(Own(), 32).stages
    assert [stage.name for stage in stages] == ["stem", "stage1", "head"]
    assert "shift" in stages[0].parameters
    assert "scale" in stages[1].parameters
    assert "temperature" in stages[2].parameters


def test_a_tied_parameter_is_placed_once() -> None:
    module = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3))
    module[2].weight = module[0].weight
    placed = [name for stage in trace_stages(module, inputs=torch.zeros(2, 8)).stages for name in stage.parameters]
    assert sorted(placed) == sorted(name for name, _ in module.named_parameters())
    assert "2.weight" not in placed


def test_a_compiled_child_is_looked_into_and_not_compiled_again() -> None:
    compiled: list[object] = []

    def backend(graph: Any, inputs: object) -> Any:
        compiled.append(graph)
        return graph

    module = nn.Sequential(torch.compile(Net(), backend=backend), nn.Linear(5, 2))
    module(torch.zeros(2, 3, 32, 32))
    compiled.clear()
    trace = trace_stages(module, 32)
    assert trace.stages[0].modules == ("0._orig_mod.conv", "0._orig_mod.norm")
    assert not compiled


def test_a_model_that_returns_its_map_beside_what_it_pooled_is_opened() -> None:
    class Pooling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.Conv2d(4, 4, 1))
            self.two = nn.Sequential(nn.Conv2d(4, 5, 2, 2), nn.Conv2d(5, 5, 1))
            self.three = nn.Sequential(nn.Conv2d(5, 6, 2, 2), nn.Conv2d(6, 6, 1))
            self.pool = nn.AdaptiveAvgPool2d(1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            spread = self.three(self.two(self.one(x)))
            return spread, self.pool(spread)

    class Classifying(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = Pooling(), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x)[1].flatten(1))

    stages = trace_stages(Classifying(), 32).stages
    assert [stage.modules for stage in stages[:-1]] == [("body.one",), ("body.two",), ("body.three", "body.pool")]
