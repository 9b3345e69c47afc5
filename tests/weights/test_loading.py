"""load_weights: what is filled, what is told, what is refused; and that a refused load leaves no trace."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_network import equal, network, values
from torch import nn

from lit_transfer.weights import WeightsError, load_weights, open_checkpoint


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
