import pytest
import torch
import torchvision
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lit_transfer.stages import Stage, stages_of


def resnet(**options: int) -> nn.Module:
    return torchvision.models.resnet18(weights=None, **options)


def names(module: nn.Module) -> dict[str, list[str]]:
    """Stage -> its modules; checks that each parameter is in one stage."""
    stages = stages_of(module)
    placed = [name for stage in stages for name in stage.parameters]
    assert sorted(placed) == sorted(name for name, _ in module.named_parameters())
    return {stage.name: list(stage.modules) for stage in stages}


class Foreign(LightningModule):
    """A stranger's module: a network, a head, a parameter of the loss; no forward of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.network = resnet(num_classes=64)
        self.probe = nn.Linear(64, 3)
        self.log_sigma = nn.Parameter(torch.zeros(1))


class Runs(Foreign):
    def forward(self, x: Tensor) -> Tensor:
        return self.probe(self.network(x)) * self.log_sigma.exp()


def test_a_lightning_module_is_run_where_it_has_a_forward() -> None:
    stages = names(Runs())
    assert stages["stage4"] == ["network.layer4"]
    assert stages["stage5"] == ["network.avgpool", "network.fc"]
    assert stages["head"] == ["probe"]
    assert Runs()._trainer is None


def test_without_a_forward_the_largest_child_is_traced_and_the_rest_is_the_head() -> None:
    module = Foreign()
    stages = stages_of(module)
    assert names(module)["stage4"] == ["network.layer4", "network.avgpool"]
    assert [stage.name for stage in stages][-2:] == ["stage5", "head"]
    assert stages[-2].parameters == ("network.fc.weight", "network.fc.bias")
    assert stages[-1].parameters == ("log_sigma", "probe.weight", "probe.bias")


def test_a_child_that_holds_everything_keeps_its_own_head() -> None:
    class OnlyANetwork(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = resnet()

    assert names(OnlyANetwork())["head"] == ["network.fc"]


def test_a_head_that_is_tied_to_the_network_is_counted_once() -> None:
    class Tied(Foreign):
        def __init__(self) -> None:
            super().__init__()
            self.probe = nn.Linear(512, 64)
            self.probe.weight = self.network.fc.weight

    assert "probe.weight" not in stages_of(Tied())[-1].parameters
    names(Tied())


def test_the_example_input_is_used() -> None:
    class Signal(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.example_input_array = (torch.zeros(2, 9), torch.zeros(2, 5))
            self.one, self.two, self.out = nn.Linear(9, 4), nn.Linear(5, 4), nn.Linear(4, 2)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.out(self.one(a) * self.two(b))

    assert names(Signal()) == {"stem": ["one"], "stage1": ["two"], "head": ["out"]}


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
        nn.Sequential(
            nn.Conv1d(2, 4, 5), nn.Conv1d(4, 8, 5, 2), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 3)
        ),
        nn.Sequential(nn.Conv2d(1, 4, 5), nn.Flatten(), nn.Linear(4 * 24 * 24, 16), nn.ReLU(), nn.Linear(16, 10)),
        nn.DataParallel(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))),
        torch.nn.Linear(3, 2),
    ],
    ids=["digits", "signals", "28 pixels", "parallel", "one layer"],
)
def test_usual_inputs_are_found(module: nn.Module) -> None:
    stages = names(module)
    assert next(iter(stages)) == "stem"


def test_stages_that_are_known_are_taken() -> None:
    class Known(nn.Linear):
        stages = (Stage("stem", (), ("weight", "bias"), None),)

    assert stages_of(Known(2, 2)) is Known.stages


def test_what_cannot_be_run_is_told_and_ordered_as_registered() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4))
            self.more = nn.ModuleList([nn.Linear(3, 4), nn.Linear(4, 4)])

        def forward(self, one: Tensor, two: Tensor) -> None: ...

    with pytest.warns(UserWarning, match="The stages of Pair follow the order .* Set its example_input_array"):
        stages = names(Pair())
    assert stages == {"stem": ["one.0", "one.1"], "stage1": ["one.2"], "stage2": ["more.0"], "head": ["more.1"]}
