"""Which of several networks in a file is meant; and what is said where none fits."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from lit_transfer.weights import WeightsError, load_weights, plan_weights

State = dict[str, Tensor]


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def under(prefix: str, state: State) -> State:
    return {f"{prefix}.{name}": tensor for name, tensor in state.items()}


def equal(model: nn.Module, state: State) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


WANTED, OTHER = net().state_dict(), net().state_dict()
# Layout -> (content, what the report calls the chosen one, and the one that was passed over).
PAIRS: dict[str, tuple[Any, str, str]] = {
    "ema in a dictionary of its own": ({"model": OTHER, "model_ema": WANTED}, "model_ema", "model"),
    "ema as a prefix": ({**under("ema", WANTED), **under("net", OTHER)}, "ema", "net"),
    "teacher": ({"student": OTHER, "teacher": WANTED}, "teacher", "student"),
    "teacher as a prefix": (
        {**under("teacher.backbone", WANTED), **under("student.backbone", OTHER)},
        "teacher.backbone",
        "student.backbone",
    ),
    "query encoder": (
        {"state_dict": {**under("module.encoder_k", OTHER), **under("module.encoder_q", WANTED)}},
        "state_dict.module.encoder_q",
        "state_dict.module.encoder_k",
    ),
    "online network": ({**under("target", OTHER), **under("online", WANTED)}, "online", "target"),
}


@pytest.mark.parametrize("layout", PAIRS)
def test_the_choice_is_told_and_can_be_turned(layout: str) -> None:
    content, chosen, other = PAIRS[layout]
    model = net()
    report = load_weights(model, content)
    assert equal(model, WANTED)
    assert f"'{chosen}' was chosen; the file also has key='{other}'" in report.notes
    assert chosen in str(report)
    load_weights(model, content, key=other)
    assert equal(model, OTHER)
    if "ema" in layout or "teacher" in layout:  # training goes on with what was trained
        load_weights(model, content, prefer="plain")
        assert equal(model, OTHER)


def test_a_state_dict_beats_the_module_beside_it_and_ema_is_an_exception(tmp_path: Path) -> None:
    module = net()
    torch.save({"model": module, "model_state_dict": WANTED}, tmp_path / "f")
    model = net()
    report = load_weights(model, tmp_path / "f")
    assert equal(model, WANTED)
    assert report.notes == ("'model_state_dict' was chosen; the file also has key='model'",)
    average = net()
    torch.save({"epoch": -1, "ema": average, "model": module, "updates": 9}, tmp_path / "f")
    assert load_weights(model, tmp_path / "f").key == "ema"
    assert equal(model, average.state_dict())
    assert load_weights(model, tmp_path / "f", prefer="plain").key == "model"
    assert equal(model, module.state_dict())


def test_compiled_layers_on_either_side() -> None:
    compiled = {re.sub(r"^([02])\.", r"\1._orig_mod.", name): tensor for name, tensor in WANTED.items()}
    model = net()
    report = load_weights(model, compiled)
    assert equal(model, WANTED)
    assert report.edit == "`_orig_mod` dropped inside"
    wrapped = net()
    wrapped[0] = nn.ModuleDict({"_orig_mod": wrapped[0]})  # as torch.compile names it, which takes seconds
    report = load_weights(wrapped, WANTED)
    assert torch.equal(wrapped[0]._orig_mod.weight, WANTED["0.weight"])
    assert report.edit == "`_orig_mod` passed over in the model"


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return torchvision.models.get_model(name, weights=None)


def test_the_diagnosis_says_how_far_it_fits_and_what_the_file_looks_like() -> None:
    """The near miss is the one that is told: with the prefix, and how many tensors would fit with it."""
    with pytest.raises(WeightsError) as caught:
        load_weights(on_meta("resnet34"), under("net.backbone", on_meta("resnet18").state_dict()))
    assert "0 of 182 tensors match by name and shape; 102 do with `net.backbone.` removed" in str(caught.value)
    assert "looks like a ResNet of basic blocks" in str(caught.value)
    assert "min_coverage=0.56 accepts that" in str(caught.value)
    with pytest.raises(WeightsError) as caught:
        load_weights(on_meta("resnet18"), on_meta("vit_b_32").state_dict())
    assert "0 of 102 tensors match by name and shape; the file looks like a ViT (torchvision)" in str(caught.value)
    assert "accepts that" not in str(caught.value)  # no argument would


def test_versions_of_modules_are_renamed_through_every_edit() -> None:
    model = torchvision.models.mnasnet0_5(num_classes=3)
    versions = model.state_dict()._metadata
    assert versions[""] == {"version": 2}
    for wrap in (lambda m: m, nn.DataParallel, lambda m: nn.DataParallel(nn.Sequential(m))):
        plan = plan_weights(model, wrap(model).state_dict())
        assert plan.complete
        assert plan.metadata[""] == {"version": 2}
        owners = {name.rpartition(".")[0] for name in model.state_dict()}
        assert {name: plan.metadata[name] for name in owners} == {name: versions[name] for name in owners}
    state = nn.DataParallel(model).state_dict()
    inside = type(state)((name.replace("layers.", "layers.module.", 1), t) for name, t in state.items())
    inside._metadata = {name.replace("layers.", "layers.module.", 1): entry for name, entry in state._metadata.items()}
    assert plan_weights(model, inside).metadata["layers.8.0.layers.0"] == versions["layers.8.0.layers.0"]
