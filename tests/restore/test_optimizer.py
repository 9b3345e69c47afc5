"""States of optimizers by parameter name, into other groups than those they were saved from."""

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, MultiStepLR, ReduceLROnPlateau, SequentialLR, StepLR

from lit_transfer.restore import by_name, for_optimizers, for_scheduler, group_map, is_as_saved
from lit_transfer.weights import WeightsError

MAKERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda groups: SGD(groups, lr=0.1, momentum=0.9),
    "adam": lambda groups: Adam(groups, lr=0.01, amsgrad=True),
    "adamw": lambda groups: AdamW(groups, lr=0.01),
}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 5), nn.Linear(5, 2))


def step(network: nn.Module, optimizer: Optimizer) -> None:
    optimizer.zero_grad()
    network(torch.arange(6.0).view(2, 3)).square().sum().backward()
    optimizer.step()


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}


def ids(network: nn.Module) -> dict[int, str]:
    return {id(parameter): name for name, parameter in network.named_parameters()}


def split(network: nn.Module, places: list[int]) -> list[dict[str, Any]]:
    groups: dict[int, list[nn.Parameter]] = {}
    for parameter, at in zip(network.parameters(), places, strict=True):
        groups.setdefault(at, []).append(parameter)
    return [{"params": members} for members in groups.values()]


PLACES = st.lists(st.integers(0, 2), min_size=8, max_size=8)


@settings(deadline=None, max_examples=15)
@given(kind=st.sampled_from(sorted(MAKERS)), old=PLACES, new=PLACES)
def test_any_groups_into_any_others_step_alike(kind: str, old: list[int], new: list[int]) -> None:
    """Every shape occurs once but those of the three biases and weights of size 4 and 5, which the order tells."""
    one, other = net(), net()
    first = MAKERS[kind](split(one, old))
    for _ in range(2):
        step(one, first)
    other.load_state_dict(one.state_dict())
    second = MAKERS[kind](split(other, new))
    try:
        saved = by_name([copy.deepcopy(first.state_dict())], shapes(one))
    except WeightsError as error:
        assert "fit in several ways" in str(error)  # noqa: PT017  (either answer is right)
        return
    states, told = for_optimizers(saved, [second], ids(other))
    assert not told
    second.load_state_dict(states[0])
    step(one, first)
    step(other, second)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_states_keyed_by_id_as_very_old_files_have_them() -> None:
    network = net()
    optimizer = MAKERS["sgd"](network.parameters())
    step(network, optimizer)
    state = optimizer.state_dict()
    key = {position: 47163075480936 + 7 * position for position in range(8)}
    state["param_groups"][0]["params"] = [key[position] for position in range(8)]
    old = {"state": {key[at]: value for at, value in reversed(state["state"].items())}, **state}
    old["state"] = {key[at]: value for at, value in reversed(state["state"].items())}
    saved = by_name([old], shapes(network))
    for name, parameter in network.named_parameters():
        assert torch.equal(saved.states[name]["momentum_buffer"], optimizer.state[parameter]["momentum_buffer"])


def test_names_that_torch_saved_itself_decide() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    named = list(network.named_parameters())
    optimizer = SGD([{"params": named[2:]}, {"params": named[:2]}], lr=0.1, momentum=0.9)
    step_input = torch.ones(1, 2)
    network(step_input).sum().backward()
    optimizer.step()
    saved = by_name([optimizer.state_dict()], {f"module.{name}": (*p.shape,) for name, p in named})
    found = saved.states["module.1.weight"]["momentum_buffer"]
    assert torch.equal(found, optimizer.state[network[1].weight]["momentum_buffer"])


def test_a_file_keyed_by_names_needs_no_order() -> None:
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    optimizer = SGD([{"params": [network[1].weight]}, {"params": [network[0].weight]}], lr=0.1, momentum=0.9)
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state, order = optimizer.state_dict(), ["1.weight", "0.weight"]
    state["state"] = {order[key]: value for key, value in state["state"].items()}
    for name, group in zip(order, state["param_groups"], strict=True):
        group["params"] = [name]
    saved = by_name([state], shapes(network))
    for name, parameter in network.named_parameters():
        assert torch.equal(saved.states[name]["momentum_buffer"], optimizer.state[parameter]["momentum_buffer"])


def test_a_given_order_decides_and_is_checked() -> None:
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    optimizer = SGD([network[1].weight, network[0].weight], lr=0.1, momentum=0.9)
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    saved = by_name([optimizer.state_dict()], shapes(network), order=["1.weight", "0.weight"])
    assert torch.equal(
        saved.states["1.weight"]["momentum_buffer"], optimizer.state[network[1].weight]["momentum_buffer"]
    )
    with pytest.raises(WeightsError, match=r"1 parameter names are given.* has 2 parameters"):
        by_name([optimizer.state_dict()], shapes(network), order=["1.weight"])


def test_options_come_from_the_file_unless_this_runs_groups_differ() -> None:
    old, new = net(), net()
    saved = by_name(
        [SGD(old.parameters(), lr=0.003, momentum=0.8, weight_decay=0.1, foreach=False).state_dict()], shapes(old)
    )
    parameters = list(new.parameters())
    groups = [{"params": parameters[:6], "lr": 1e-4}, {"params": parameters[6:], "lr": 1e-2}]
    (state,), told = for_optimizers(saved, [SGD(groups, momentum=0.9, foreach=True)], ids(new))
    assert [group["lr"] for group in state["param_groups"]] == [1e-4, 1e-2]
    assert [(g["momentum"], g["weight_decay"], g["foreach"]) for g in state["param_groups"]] == [(0.8, 0.1, True)] * 2
    assert told == ["lr=0.003 of the file: this run's groups have their own"]


def test_rates_of_the_files_groups_follow_their_parameters() -> None:
    old, new = net(), net()
    parameters = list(old.parameters())
    file = SGD([{"params": parameters[:6], "lr": 1e-4}, {"params": parameters[6:], "lr": 1e-2}], momentum=0.9)
    step(old, file)
    saved = by_name([file.state_dict()], shapes(old))
    reordered = list(new.parameters())
    groups = [{"params": reordered[6:]}, {"params": reordered[:2]}, {"params": reordered[2:6]}]
    optimizer = SGD(groups, lr=1.0, momentum=0.9)
    (state,), _ = for_optimizers(saved, [optimizer], ids(new))
    assert [group["lr"] for group in state["param_groups"]] == [1e-2, 1e-4, 1e-4]
    assert group_map(saved, [["3.weight"], ["0.weight"], ["0.weight", "3.weight"], ["new"]]) == [1, 0, None, None]


def test_a_fresh_parameter_has_fresh_moments_and_is_told() -> None:
    old, new = net(), net()
    optimizer = AdamW(old.parameters())
    step(old, optimizer)
    saved = by_name([optimizer.state_dict()], shapes(old)).renamed({n: n for n in shapes(old) if not n.startswith("3")})
    fresh = AdamW(new.parameters())
    (state,), told = for_optimizers(saved, [fresh], ids(new))
    assert sorted(state["state"]) == [0, 1, 2, 3, 4, 5]
    assert told == ["fresh moments for 3.weight, 3.bias"]
    fresh.load_state_dict(state)
    step(new, fresh)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("sgd", "adam", "the file's is SGD, this run's Adam"),
        ("adam", "adamw", "the file's is Adam, this run's AdamW"),
        ("adamw", "sgd", "the file's is AdamW, this run's SGD"),
    ],
)
def test_another_optimizer_takes_nothing_and_is_told(old: str, new: str, words: str) -> None:
    network = net()
    optimizer = MAKERS[old](network.parameters())
    step(network, optimizer)
    saved = by_name([optimizer.state_dict()], shapes(network))
    states, told = for_optimizers(saved, [MAKERS[new](network.parameters())], ids(network))
    assert states == []
    assert words in told[0]


def test_an_adam_that_does_not_tell_its_decay_fits_adamw() -> None:
    network = net()
    optimizer = AdamW(network.parameters())
    step(network, optimizer)
    old = optimizer.state_dict()
    del old["param_groups"][0]["decoupled_weight_decay"]  # as before torch 2.7
    for state in old["state"].values():
        state["step"] = int(state["step"])  # as before torch 1.12
    made, told = for_optimizers(by_name([old], shapes(network)), [fresh := AdamW(network.parameters())], ids(network))
    assert not told
    fresh.load_state_dict(made[0])
    assert fresh.param_groups[0]["decoupled_weight_decay"] is True
    assert torch.is_tensor(fresh.state[network[0].weight]["step"])


def test_an_unknown_optimizer_is_carried_over_only_as_it_is() -> None:
    network = net()
    optimizer = RMSprop(network.parameters(), momentum=0.9)
    step(network, optimizer)
    state = optimizer.state_dict()
    assert for_optimizers(by_name([state], shapes(network)), [optimizer], ids(network))[0] == []
    assert is_as_saved(state, RMSprop(network.parameters(), momentum=0.9), ids(network), None)
    assert not is_as_saved(state, SGD(network.parameters()), ids(network), None)


def test_as_saved_means_same_groups_same_names_same_shapes() -> None:
    network = net()
    optimizer = SGD(network.parameters(), lr=0.1, momentum=0.9)
    step(network, optimizer)
    state, names, recorded = optimizer.state_dict(), ids(network), [list(shapes(network))]
    assert is_as_saved(state, optimizer, names, recorded)
    assert is_as_saved(state, optimizer, names, None)
    assert not is_as_saved(state, SGD(list(network.parameters())[::-1], lr=0.1, momentum=0.9), names, None)
    assert not is_as_saved(state, optimizer, names, [recorded[0][::-1]])
    assert not is_as_saved(state, SGD(split(network, [0, 0, 0, 0, 0, 0, 1, 1]), lr=0.1), names, None)


def test_two_optimizers_of_a_file_are_told_apart_by_their_parameters() -> None:
    network = net()
    parameters = list(network.parameters())
    pair = [SGD(parameters[:4], lr=0.1, momentum=0.9), SGD(parameters[4:], lr=0.2, momentum=0.9)]
    step(network, pair[0])
    pair[1].step()
    saved = by_name([optimizer.state_dict() for optimizer in pair], shapes(network))
    assert torch.equal(saved.states["3.bias"]["momentum_buffer"], pair[1].state[parameters[7]]["momentum_buffer"])
    joined = SGD(network.parameters(), lr=0.1, momentum=0.9)
    assert len(for_optimizers(saved, [joined], ids(network))[0][0]["state"]) == 8


# --- schedulers -----------------------------------------------------------------------------------------------------

SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "step": lambda o: StepLR(o, 2),
    "milestones": lambda o: MultiStepLR(o, [2, 4]),
    "cosine": lambda o: CosineAnnealingLR(o, 10),
    "lambda": lambda o: LambdaLR(o, lambda epoch: 0.9**epoch),
    "plateau": lambda o: ReduceLROnPlateau(o, patience=1),
    "sequence": lambda o: SequentialLR(o, [StepLR(o, 2), StepLR(o, 3)], [3]),
}


def advance(scheduler: Any, count: int) -> list[list[float]]:
    seen = []
    for _ in range(count):
        scheduler.optimizer.step()
        scheduler.step(*([1.0] if isinstance(scheduler, ReduceLROnPlateau) else []))
        seen.append([group["lr"] for group in scheduler.optimizer.param_groups])
    return seen


@pytest.mark.filterwarnings("ignore:.*SequentialLR")
@pytest.mark.parametrize("kind", sorted(SCHEDULERS))
def test_a_scheduler_goes_on_in_other_groups(kind: str) -> None:
    parameters = list(net().parameters())
    optimizer = SGD([{"params": parameters[:6], "lr": 0.1}, {"params": parameters[6:], "lr": 1.0}])
    scheduler = SCHEDULERS[kind](optimizer)
    advance(scheduler, 3)
    new = SGD([{"params": parameters[6:]}, {"params": parameters[:2]}, {"params": parameters[2:6]}], lr=7.0)
    fresh = SCHEDULERS[kind](new)
    state = for_scheduler(copy.deepcopy(scheduler.state_dict()), fresh.state_dict(), [1, 0, 0], 2)
    assert state is not None
    fresh.load_state_dict(state)
    for group, lr in zip(new.param_groups, [1.0, 0.1, 0.1], strict=True):
        group["lr"] = optimizer.param_groups[lr == 1.0]["lr"]
        group["initial_lr"] = lr
    assert advance(fresh, 4) == [[b, a, a] for a, b in advance(scheduler, 4)]


def test_rates_in_which_this_runs_groups_differ_stay_with_the_scheduler_too() -> None:
    old, new = net(), list(net().parameters())
    saved = StepLR(SGD(old.parameters(), lr=0.5), 2).state_dict()
    own = StepLR(SGD([{"params": new[:6], "lr": 0.1}, {"params": new[6:], "lr": 1.0}]), 2).state_dict()
    state = for_scheduler(saved, own, [0, 0], 1)
    assert state is not None
    assert state["base_lrs"] == [0.1, 1.0]


def test_milestones_stay_a_counter() -> None:
    optimizer = SGD(net().parameters(), lr=0.1)
    saved = MultiStepLR(optimizer, [2, 4]).state_dict()
    state = for_scheduler({**saved, "milestones": dict(saved["milestones"])}, saved, [0], 1)
    assert state is not None
    assert type(state["milestones"]) is Counter


def test_the_state_of_another_scheduler_is_not_taken() -> None:
    optimizer = SGD(net().parameters(), lr=0.1)
    saved = StepLR(optimizer, 2).state_dict()
    assert for_scheduler(saved, CosineAnnealingLR(optimizer, 5).state_dict(), [0], 1) is None
    assert for_scheduler(saved, StepLR(optimizer, 3).state_dict(), [0], 1) is not None
