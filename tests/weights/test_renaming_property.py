"""Any renaming of any traced model is undone or refused: what is loaded is never a wrong pair.

The values tell each tensor of the file apart: its number, throughout. Renamings keep apart what was apart.
"""

from collections import OrderedDict
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_network import network
from torch import Tensor, nn
from torchvision import models

from lit_transfer.weights import WeightsError, load_weights

FILES = settings(deadline=None, max_examples=12)
BUILD = {
    "small": lambda: network(width=2),
    "resnet": lambda: models.ResNet(models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=4, width_per_group=4),
    "mobilenet": lambda: models.MobileNetV2(num_classes=4, width_mult=0.1),
    "densenet": lambda: models.DenseNet(4, (2, 2), 4, num_classes=4),
    "vit": lambda: models.VisionTransformer(32, 8, 2, 2, 8, 16, num_classes=4),
    "swin": lambda: models.SwinTransformer([4, 4], 8, [1, 1], [1, 2], [2, 2], num_classes=4),
    "convnext": lambda: models.ConvNeXt(
        [models.convnext.CNBlockConfig(8, 16, 2), models.convnext.CNBlockConfig(16, None, 1)], num_classes=4
    ),
    "squeezenet": lambda: models.squeezenet1_1(num_classes=4),
}
WORDS = ["module", "model", "net", "backbone", "encoder", "_orig_mod", "student", "state", "x", "trunk", "m_0", "body"]
ENDS = {"weight": ["kernel", "gamma", "w"], "bias": ["beta", "b"], "running_mean": ["mean"], "running_var": ["var"]}


@cache
def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return BUILD[name]()


def numbered(model: nn.Module) -> "OrderedDict[str, Tensor]":
    """Each tensor of a model with its own number in the place of its values."""
    state = model.state_dict()
    return OrderedDict(
        (name, torch.full_like(tensor, number)) for number, (name, tensor) in enumerate(state.items(), 1)
    )


@st.composite
def renamings(draw: st.DrawFn, names: list[str]) -> dict[str, str]:
    """Old name -> new name: prefixes in front, words inside, other words for some of them, other ends."""
    front = draw(st.lists(st.sampled_from(WORDS), max_size=3))
    segments = sorted({segment for name in names for segment in name.split(".")[:-1] if not segment.isdigit()})
    chosen = draw(st.lists(st.sampled_from(segments), max_size=3, unique=True)) if segments else []
    others = draw(st.lists(st.text("abcxyz_", min_size=2, max_size=5), min_size=3, max_size=3, unique=True))
    words = {old: f"{new}9" for old, new in zip(chosen, others, strict=False)}  # no word of any model ends in 9
    wrapped = draw(st.sampled_from(["", "", *segments])) if segments else ""
    ends = {end: draw(st.sampled_from([end, *more])) for end, more in ENDS.items()} if draw(st.booleans()) else {}
    shift = draw(st.sampled_from([0, 0, 0, 1]))

    def renamed(name: str) -> str:
        *path, end = name.split(".")
        new = [*front]
        for segment in path:
            new.append(str(int(segment) + shift) if segment.isdigit() else words.get(segment, segment))
            if segment == wrapped:
                new.append("wrapped")
        return ".".join([*new, ends.get(end, end)])

    return {name: renamed(name) for name in names}


def check(model: nn.Module, content: dict[str, Tensor]) -> bool:
    """Load, and return whether all was loaded; a tensor has its own number then, or stays as it was, told."""
    expected = numbered(model)
    for tensor in model.state_dict().values():
        tensor.zero_()
    try:
        report = load_weights(model, content)
    except WeightsError:
        assert not any(tensor.any() for tensor in model.state_dict().values())
        return False
    for name, tensor in model.state_dict().items():
        beside = report.target and not name.startswith(f"{report.target}.")
        if beside or name in report.missing:  # what another name hides stays as it is, told: a head, or all but a part
            assert not tensor.any(), name
        else:
            assert torch.equal(tensor, expected[name]), name
    return not report.target and not [name for name in report.missing if not name.endswith("num_batches_tracked")]


@pytest.mark.parametrize("name", BUILD)
@FILES
@given(data=st.data())
def test_any_renaming_is_undone_or_refused(name: str, data: st.DataObject) -> None:
    model = built(name)
    state = numbered(model)
    new = data.draw(renamings(list(state)))
    content = OrderedDict((new[name], tensor) for name, tensor in state.items())
    if data.draw(st.booleans()):  # in another order
        content = OrderedDict(data.draw(st.permutations(list(content.items()))))
    check(model, content)


@pytest.mark.parametrize(("name", "part"), [("vit", "encoder."), ("squeezenet", "features."), ("swin", "features.")])
@pytest.mark.parametrize("front", ["", "module."])
def test_one_renamed_part_is_not_loaded_alone_where_the_file_has_the_rest(name: str, part: str, front: str) -> None:
    model = built(name)
    content = {front + old.replace(part, "trunk9."): tensor for old, tensor in numbered(model).items()}
    with pytest.raises(WeightsError, match="are in it under their own names"):
        load_weights(model, content)
    assert load_weights(model, content, target=part.rstrip(".")).coverage == 1


@pytest.mark.parametrize("name", BUILD)
@FILES
@given(data=st.data())
def test_prefixes_in_front_are_always_undone(name: str, data: st.DataObject) -> None:
    model = built(name)
    front = ".".join([*data.draw(st.lists(st.sampled_from(WORDS), max_size=4)), ""])
    assert check(model, {f"{front.lstrip('.')}{name}": tensor for name, tensor in numbered(model).items()})


@pytest.mark.parametrize("name", BUILD)
@FILES
@given(data=st.data())
def test_pairs_with_the_shapes_of_others_are_never_taken(name: str, data: st.DataObject) -> None:
    """Names mean nothing here, and the order is any: only shapes could pair, which must not be guessed by."""
    model = built(name)
    items = data.draw(st.permutations(list(numbered(model).values())))
    check(model, OrderedDict((f"p{number}.weight", tensor) for number, tensor in enumerate(items)))
