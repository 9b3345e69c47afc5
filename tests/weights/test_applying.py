"""Carrying out a plan: objects, ties, devices, dtypes and memory formats of the model stay."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_network import equal, network, values
from torch import nn

from lit_transfer.weights import WeightsError, load_weights, plan_weights


def test_keeps_parameter_objects_dtype_and_optimizer() -> None:
    model = network().half()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = list(model.parameters())
    report = load_weights(model, values(network()))
    assert all(one is other for one, other in zip(before, model.parameters(), strict=True))
    assert optimizer.param_groups[0]["params"][0] is model.stem[0].weight
    assert model.stem[0].weight.dtype == torch.float16
    assert report.adapted["stem.0.weight"] == "float32 to float16"


def test_tied_parameters_stay_tied() -> None:
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 2))
        model[1].weight = model[0].weight
        return model

    source, model = tied(), tied()
    state = values(source)
    del state["1.weight"]
    report = load_weights(model, state)
    assert model[1].weight is model[0].weight
    assert torch.equal(model[0].weight, source[0].weight)
    assert report.coverage == 1
    assert report.adapted["1.weight"] == "tied to 0.weight"


def test_a_model_on_meta_is_filled() -> None:
    with torch.device("meta"):
        model = network()
    before = list(model.parameters())
    source = network()
    load_weights(model, values(source))
    assert equal(values(model), values(source))
    assert not model.stem[1].num_batches_tracked.is_meta
    assert all(one is other for one, other in zip(before, model.parameters(), strict=True))


def test_a_meta_models_head_that_stays_empty_is_told(tmp_path: Path) -> None:
    torch.save(network(4).state_dict(), tmp_path / "f.pth")
    with torch.device("meta"):
        model = network(7)
    report = load_weights(model, tmp_path / "f.pth", map_location=lambda storage, _: storage)
    assert "still on the meta device: fc.weight, fc.bias" in report.notes
    assert torch.equal(model.stem[0].weight, network(4).stem[0].weight)


@pytest.mark.parametrize("form", ["cpu", torch.device("cpu"), {"cuda:3": "cpu"}, lambda storage, _: storage])
def test_map_location_says_where_a_model_on_meta_is_made(tmp_path: Path, form: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda _: "cuda:3")
        torch.save(network().state_dict(), tmp_path / "f.pth")
    with torch.device("meta"):
        model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    load_weights(model, tmp_path / "f.pth", map_location=form)
    assert equal(values(model), values(network()))
    model(torch.rand(2, 3, 8, 8)).sum().backward()
    optimizer.step()  # it was made before there were values
    assert not torch.equal(model.stem[0].weight, network().stem[0].weight)
    ready = network()
    load_weights(ready, tmp_path / "f.pth", map_location=form)  # it has a device of its own
    assert equal(values(ready), values(network()))


def test_map_location_may_be_a_device_that_has_no_values(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "f.pth")
    with torch.device("meta"):
        model = network()
    report = load_weights(model, tmp_path / "f.pth", map_location={"cpu": "meta"})
    assert any("still on the meta device: stem.0.weight" in note for note in report.notes)


def test_autograd_learns_that_parameters_changed(tmp_path: Path) -> None:
    source, model = network(), network(9)
    torch.save(source.state_dict(), tmp_path / "f.pth")
    versions = {name: parameter._version for name, parameter in model.named_parameters()}
    load_weights(model, tmp_path / "f.pth")
    assert all(torch.equal(t, values(source)[n]) for n, t in values(model).items() if not n.startswith("fc."))
    changed = {name for name, parameter in model.named_parameters() if parameter._version > versions[name]}
    assert changed == {name for name in versions if not name.startswith("fc.")}


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_the_models_memory_format_stays(tmp_path: Path, memory_format: torch.memory_format) -> None:
    source, model = network(), network().to(memory_format=memory_format)  # type: ignore[call-overload]  # torch's stub
    torch.save(source.state_dict(), tmp_path / "f.pth")
    stride = model.layer1[0].weight.stride()
    load_weights(model, tmp_path / "f.pth")
    assert equal(values(model), values(source))
    assert model.layer1[0].weight.stride() == stride


def test_the_plan_is_a_value(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "w.pth")
    with torch.device("meta"):
        model = network(9)
    plan = plan_weights(model, tmp_path / "w.pth")
    assert plan.complete
    told = json.loads(json.dumps(plan.to_dict()))
    assert told["entries"][0] == {
        "name": "stem.0.weight",
        "shape": [6, 3, 3, 3],
        "action": "load",
        "source": "stem.0.weight",
        "source_shape": [6, 3, 3, 3],
        "nbytes": 648,
        "reason": "",
    }
    assert json.loads(json.dumps(plan.report().to_dict()))["head"] == ["fc"]
    assert "stem.0.weight" in str(plan)
    model = network(9)
    plan.apply(model)
    with pytest.raises(WeightsError, match="another model"):
        plan.apply(nn.Linear(3, 3))
    torch.save({}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="has changed"):
        plan.apply(model)
