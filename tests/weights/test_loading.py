"""load_weights: what is filled, what is told, what is refused; and that a refused load leaves no trace."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lit_transfer.weights import WeightsError, load_weights, open_checkpoint, plan_weights


def network(classes: int = 4, channels: int = 3, width: int = 6) -> nn.Module:
    """A small convolutional network with the features of a real one: norms, blocks, a head."""
    torch.manual_seed(classes)
    model = nn.Sequential()
    model.stem = nn.Sequential(nn.Conv2d(channels, width, 3, bias=False), nn.BatchNorm2d(width))
    model.layer1 = nn.Sequential(nn.Conv2d(width, width, 3), nn.BatchNorm2d(width), nn.ReLU())
    model.layer2 = nn.Sequential(nn.Conv2d(width, 2 * width, 3), nn.BatchNorm2d(2 * width), nn.ReLU())
    model.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.fc = nn.Linear(2 * width, classes)
    return model


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("legacy", [False, True])
def test_loads_a_file_of_torch_save(tmp_path: Path, legacy: bool) -> None:
    source, model = network(), network(classes=4)
    with torch.no_grad():
        source.fc.weight.add_(1)
    torch.save(source.state_dict(), tmp_path / "w.anything", _use_new_zipfile_serialization=not legacy)
    report = load_weights(model, tmp_path / "w.anything")
    assert equal(values(model), values(source))
    assert report.coverage == 1
    assert report.format == ("legacy torch pickle" if legacy else "torch zip")


def test_loads_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source, model = network(), network(5)
    save_file(source.state_dict(), tmp_path / "w.bin")
    load_weights(model, tmp_path / "w.bin")
    kept = values(model).pop("fc.weight")
    assert kept.shape == (5, 12)
    assert equal({**values(model), **{n: values(source)[n] for n in ("fc.weight", "fc.bias")}}, values(source))


def test_keeps_parameter_objects_dtype_and_optimizer() -> None:
    model = network().half()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = list(model.parameters())
    report = load_weights(model, values(network()))
    assert all(one is other for one, other in zip(before, model.parameters(), strict=True))
    assert optimizer.param_groups[0]["params"][0] is model.stem[0].weight
    assert model.stem[0].weight.dtype == torch.float16
    assert report.adapted["stem.0.weight"] == "float32 to float16"


def test_head_with_other_rows_stays_fresh_and_is_told() -> None:
    model = network(7)
    fresh = model.fc.weight.clone()
    report = load_weights(model, values(network(4)))
    assert report.head == ("fc",)
    assert torch.equal(model.fc.weight, fresh)
    assert report.mismatched["fc.weight"] == "head, 4x12 in the file, 7x12 in the model"
    assert "fc.weight" in str(report)


def test_old_head_is_left_over_where_the_classifier_was_cut() -> None:
    model = network()
    model.fc = nn.Identity()
    report = load_weights(model, values(network()))
    assert report.unexpected == ("fc.weight", "fc.bias")
    assert report.coverage == 1


def test_norm_in_the_place_of_an_identity_is_refused() -> None:
    model = network()
    model.layer1[1] = nn.Identity()
    with pytest.raises(WeightsError, match=r"left over.*layer1\.1\.weight.*exclude=\['layer1.1'\]"):
        load_weights(model, values(network()))
    assert load_weights(model, values(network()), exclude=["layer1.1"]).coverage == 1


@pytest.mark.parametrize(
    "edit",
    [
        "module.{}",
        "module.module.{}",
        "module._orig_mod.module.{}",
        "model.backbone.{}",
        "anything.that.nobody.foresaw.{}",
        "_forward_module.{}",
    ],
)
def test_prefixes_are_found(edit: str) -> None:
    source, model = network(), network()
    state = {edit.format(name): tensor for name, tensor in values(source).items()}
    report = load_weights(model, {"epoch": 3, "state_dict": state})
    assert equal(values(model), values(source))
    assert report.key == "state_dict"
    assert report.prefix == edit.removesuffix(".{}")


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(["a", "module", "net_2", "_orig_mod", "7"]), max_size=4))
def test_any_run_of_segments_in_front_is_found(segments: list[str]) -> None:
    source, model = network(), network()
    load_weights(model, {".".join([*segments, name]): tensor for name, tensor in values(source).items()})
    assert equal(values(model), values(source))


def test_segments_inside_are_found() -> None:
    source, model = network(), network()
    state = {name.replace("layer1.", "layer1.module."): tensor for name, tensor in values(source).items()}
    report = load_weights(model, state)
    assert equal(values(model), values(source))
    assert "`module` dropped inside" in report.edit


def test_a_wrapped_model_is_filled_from_a_plain_file() -> None:
    source = network()
    for model in (nn.DataParallel(network()), nn.DataParallel(nn.DataParallel(network()))):
        load_weights(model, values(source))
        assert equal(
            {n.removeprefix("module.").removeprefix("module."): t for n, t in values(model).items()}, values(source)
        )


def test_the_part_of_the_model_is_found_and_told() -> None:
    class Lit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = network()
            self.backbone.fc = nn.Identity()
            self.head = nn.Linear(12, 3)

    source, model = network(), Lit()
    report = load_weights(model, values(source))
    assert report.target == "backbone"
    assert torch.equal(model.backbone.stem[0].weight, source.stem[0].weight)


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_first_convolution_is_adapted_to_other_channels(channels: int) -> None:
    source, model = network(), network(channels=channels)
    report = load_weights(model, values(source))
    weight = source.stem[0].weight
    grey = torch.ones(1, channels, 5, 5)
    expected = nn.functional.conv2d(torch.ones(1, 3, 5, 5), weight)
    if channels in (1, 6):  # whole repetitions answer equal channels exactly as three of them did
        torch.testing.assert_close(nn.functional.conv2d(grey, model.stem[0].weight), expected)
    assert "input channels" in report.adapted["stem.0.weight"]


def test_a_deeper_convolution_is_never_adapted() -> None:
    model = network()
    model.layer2[0] = nn.Conv2d(3, 12, 3)
    with pytest.raises(WeightsError, match=r"layer2\.0\.weight"):
        load_weights(model, values(network()))


def test_a_refused_load_leaves_the_model_untouched_and_names_the_argument() -> None:
    model = network(channels=3, width=6)
    model.stem[0] = nn.Conv2d(3, 6, 5, bias=False)
    before = values(model)
    with pytest.raises(
        WeightsError, match=r"stem.0.weight \(6x3x3x3 in the file, 6x3x5x5 in the model\).*exclude="
    ) as caught:
        load_weights(model, values(network()))
    assert "on_mismatch='skip'" in str(caught.value)
    assert equal(values(model), before)
    assert load_weights(model, values(network()), on_mismatch="skip").mismatched.keys() == {"stem.0.weight"}


def test_half_a_file_is_refused_and_loads_with_the_argument_that_the_error_names() -> None:
    half = dict(list(values(network()).items())[:9])
    with pytest.raises(WeightsError, match="min_coverage=") as caught:
        load_weights(network(), half)
    named = float(str(caught.value).split("min_coverage=")[1].split(" ")[0])
    assert 0.4 < load_weights(network(), half, min_coverage=named).coverage < 1


def test_a_deeper_network_is_refused() -> None:
    deeper = network()
    deeper.layer2.append(nn.Conv2d(12, 12, 1))
    with pytest.raises(WeightsError, match="left over"):
        load_weights(network(), values(deeper))
    with pytest.raises(WeightsError, match="not in it"):
        load_weights(deeper, values(network()))


def test_more_numbered_layers_are_left_over() -> None:
    deep = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(WeightsError, match=r"left over.*2\.weight.*exclude=\['2', '4'\]"):
        load_weights(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), deep.state_dict())


def test_a_layer_before_others_is_no_head() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("1.")}
    with pytest.raises(WeightsError, match=r"not in it: 1\.weight"):
        load_weights(model, state)


def test_counters_of_old_files_are_not_missed() -> None:
    old = {name: tensor for name, tensor in values(network()).items() if "num_batches" not in name}
    assert load_weights(network(), old).coverage == 1


def test_integers_are_never_cast_to_floats() -> None:
    state = {**values(network()), "layer1.0.bias": torch.ones(6, dtype=torch.int64)}
    with pytest.raises(WeightsError, match="int64 to float32 would change the kind of number"):
        load_weights(network(), state)


def test_which_state_dict() -> None:
    one, two = network(), network()
    with torch.no_grad():
        two.fc.weight.add_(1)
    model = network()
    load_weights(model, {"student": values(one), "teacher": values(two)})
    assert equal(values(model), values(two))
    load_weights(model, {"student": values(one), "teacher": values(two)}, key="student")
    assert equal(values(model), values(one))
    report = load_weights(model, {"state_dict": values(one), "state_dict_ema": values(two)})
    assert equal(values(model), values(two))
    assert "state_dict_ema" in report.notes[0]
    load_weights(model, {"state_dict": values(one), "state_dict_ema": values(two)}, prefer="plain")
    assert equal(values(model), values(one))
    with pytest.raises(WeightsError, match="key='best' or key='last'"):
        load_weights(model, {"best": values(one), "last": values(two)})


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


def test_wrong_names_list_the_nearest() -> None:
    with pytest.raises(WeightsError, match="nearest: fc"):
        load_weights(network(), values(network()), head=["fcc"])
    with pytest.raises(WeightsError, match="exclude='layer9' matches no tensor"):
        load_weights(network(), values(network()), exclude=["layer9"])
    with pytest.raises(WeightsError, match=r"'teachr' names no state dict.*'teacher'"):
        load_weights(network(), {"teacher": values(network())}, key="teachr")
    with pytest.raises(TypeError, match=r"head must be a list of names.*\['fc'\]"):
        load_weights(network(), values(network()), head="fc")


def test_rename_knows_what_no_search_can() -> None:
    source, model = network(), network()
    state = {name.replace("layer1", "blk.one"): tensor for name, tensor in values(source).items()}
    with pytest.raises(WeightsError):
        load_weights(model, state)
    load_weights(model, state, rename={r"^blk\.one": "layer1"})
    assert equal(values(model), values(source))
    with pytest.raises(WeightsError, match="matches no name"):
        load_weights(model, state, rename={"nothing": ""})


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


def test_a_missing_file_lists_the_nearest(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "model_best.pth")
    with pytest.raises(FileNotFoundError, match=r"there is model_best\.pth"):
        open_checkpoint(tmp_path / "model_bst.pth")


def test_a_module_beside_its_own_state_dict_is_no_third_choice(tmp_path: Path) -> None:
    net = nn.Linear(2, 2)
    averaged = {name: tensor + 1 for name, tensor in net.state_dict().items()}
    torch.save({"model": net, "state_dict": net.state_dict(), "ema": averaged}, tmp_path / "f.pth")
    model = nn.Linear(2, 2)
    assert load_weights(model, tmp_path / "f.pth", prefer="plain").key == "state_dict"
    assert torch.equal(model.weight, net.weight)
    assert load_weights(model, tmp_path / "f.pth").key == "ema"
