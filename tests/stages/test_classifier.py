import pytest
import torch
from torch import Tensor, nn

from lit_transfer.stages import trace_stages


def body() -> list[nn.Module]:
    return [nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU()]


POOL = (nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize(
    ("layers", "classifier", "feature_shape"),
    [
        ([*body(), *POOL, nn.Linear(16, 5)], "8", (16,)),
        ([*body(), *POOL, nn.Linear(16, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 5), nn.Softmax(1)], "11", (32,)),
        ([*body(), nn.Conv2d(16, 5, 1), nn.ReLU(), *POOL], "6", (16, 7, 7)),
        ([*body(), *POOL, nn.utils.parametrizations.weight_norm(nn.Linear(16, 5))], "8", (16,)),
        (body(), None, (16, 7, 7)),
        ([*body(), *POOL], None, (16,)),
        ([*body(), *POOL, nn.Linear(16, 5), nn.LayerNorm(5)], None, (5,)),
        ([*body(), nn.Conv2d(16, 5, 3)], None, (5, 5, 5)),
    ],
)
def test_the_last_projection_is_the_classifier_if_nothing_follows(
    layers: list[nn.Module], classifier: str | None, feature_shape: tuple[int, ...]
) -> None:
    trace = trace_stages(nn.Sequential(*layers), 32)
    assert trace.classifier == classifier
    assert trace.feature_shape == feature_shape
    assert ("head" in {stage.name for stage in trace.stages}) == (classifier is not None)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(self.norm(x)).relu())


def test_the_end_of_a_repeated_block_is_no_classifier() -> None:
    encoder = nn.Sequential(Block(), Block(), Block())
    trace = trace_stages(encoder, inputs=torch.zeros(2, 5, 8))
    assert trace.classifier is None
    assert [stage.modules for stage in trace.stages] == [("0",), ("1",), ("2",)]


class Distilled(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(48, inputs), nn.BatchNorm1d(inputs))
        self.first = nn.Sequential(nn.BatchNorm1d(inputs), nn.Linear(inputs, outputs))
        self.second = nn.Sequential(nn.BatchNorm1d(inputs), nn.Linear(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return (self.first(x) + self.second(x)) / 2


def test_two_classifiers_side_by_side_are_one_head() -> None:
    trace = trace_stages(Distilled(16, 5), 4)
    assert trace.classifier == "first.1"
    assert trace.stages[-1].modules == ("first.1", "second.1")
    assert "second.0.weight" in trace.stages[-2].parameters


def test_layers_that_could_follow_each_other_are_not_taken_for_two_classifiers() -> None:
    assert trace_stages(Distilled(16, 16), 4).stages[-1].modules == ("second.1",)


def test_the_classifier_can_be_named_or_denied() -> None:
    module = nn.Sequential(*body(), *POOL, nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 5))
    named = trace_stages(module, 32, classifier="8")
    assert named.feature_shape == (16,)
    assert named.stages[-1].modules == ("8",)
    denied = trace_stages(module, 32, classifier=None)
    assert denied.feature_shape == (5,)
    assert denied.stages[-1].name != "head"
    with pytest.raises(ValueError, match=r"classifier='fc': expected the dotted name .* Nearest: "):
        trace_stages(module, 32, classifier="fc")
