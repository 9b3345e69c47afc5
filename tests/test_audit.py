"""The table says what is; what no training can be meant to do is an error that says what to change."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import SGD

from lit_transfer import freeze, param_groups, unfreeze
from lit_transfer.audit import audit, check_trainability, checksums, table
from lit_transfer.stages import Stage


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


STAGES = (
    Stage("stem", ("body.0", "body.1"), ("body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias"), None),
    Stage("head", ("head",), ("head.weight", "head.bias"), None),
)


def test_the_table_tells_parameters_rates_decay_and_norms_of_each_stage() -> None:
    net = Net()
    freeze(net, "body")
    optimizer = SGD(param_groups(net, 0.1, 0.01, head_lr=0.5, stages=STAGES))
    stem, head = audit(net, [optimizer], stages=STAGES)
    assert (stem.parameters, stem.trainable, stem.lr, stem.weight_decay, stem.norms) == (
        28,
        0,
        (0.1,),
        (0.0, 0.01),
        "running",
    )
    assert (head.parameters, head.trainable, head.lr, head.norms) == (10, 10, (0.5,), "none")
    lines = table([stem, head]).splitlines()
    assert len(lines) == 3
    assert "frozen" in lines[1]
    unfreeze(net, "body.0")
    assert audit(net, stages=STAGES)[0].trainable == 20
    unfreeze(net, "body.1")
    assert audit(net, stages=STAGES)[0].norms == "batch"


def test_a_parameter_that_trains_in_no_optimizer_or_in_two_places_is_refused() -> None:
    net = Net()
    with pytest.raises(ValueError, match=r"body\.0\.weight.* will train, but no optimizer has them"):
        check_trainability(net, [SGD(net.head.parameters())])
    with pytest.raises(ValueError, match=r"head\.weight, head\.bias are in the optimizers twice"):
        check_trainability(net, [SGD(net.parameters()), SGD(net.head.parameters())])
    check_trainability(net, [SGD(net.parameters())])


def test_statistics_that_move_under_frozen_parameters_are_refused() -> None:
    net = Net()
    optimizer = SGD(net.parameters())
    net.body.requires_grad_(False)
    with pytest.raises(ValueError, match=r"body\.1 is frozen, but in train mode.*lit_transfer\.freeze"):
        check_trainability(net, [optimizer])
    freeze(net, "body")
    check_trainability(net, [optimizer])
    freeze(net, "body", update_statistics=True)
    check_trainability(net.train(), [optimizer])


def test_a_parameter_tied_across_a_frozen_boundary_is_refused() -> None:
    net = nn.ModuleDict({"first": nn.Linear(4, 4), "second": nn.Linear(4, 4)})
    net["second"].weight = net["first"].weight
    optimizer = SGD(net.parameters())
    check_trainability(net, [optimizer])
    freeze(net, "first.bias")
    with pytest.raises(ValueError, match=r"first\.weight and second\.weight are one parameter, tied across"):
        check_trainability(net, [optimizer])
    freeze(net, ["first", "second.bias"])
    check_trainability(net, [optimizer])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16, torch.float64])
def test_checksums_differ_with_a_single_bit(dtype: torch.dtype) -> None:
    net = nn.Linear(3, 3).to(dtype)
    other = copy.deepcopy(net)
    assert torch.equal(checksums(net), checksums(other))
    with torch.no_grad():
        other.bias[1].mul_(1.01)
    assert (checksums(net) != checksums(other)).tolist() == [False, True]
