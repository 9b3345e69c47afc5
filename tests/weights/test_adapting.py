"""Tensors of another shape: each adaptation against what it promises, and an error where none fits."""

import json
from pathlib import Path

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lit_transfer.weights import WeightsError, load_weights, save_weights
from lit_transfer.weights._adapt import adapt_input_channels, adapt_position_table, adapt_relative_table


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 7), st.integers(1, 7))
def test_equal_channels_give_equal_answers(old: int, new: int) -> None:
    weight = torch.rand(2, old, 3, 3)
    adapted = adapt_input_channels(weight, new)
    assert adapted.shape == (2, new, 3, 3)
    if new == 1 or new % old == 0:
        torch.testing.assert_close(adapted.sum(1), weight.sum(1))


def test_a_smooth_position_table_stays_what_it_was() -> None:
    ramp = torch.linspace(0, 1, 14)
    table = torch.stack(torch.meshgrid(ramp, ramp, indexing="ij"), -1).reshape(1, 196, 2)
    token = torch.full((1, 1, 2), 9.0)
    adapted = adapt_position_table(torch.cat([token, table], 1), 1 + 576, 1)
    assert torch.equal(adapted[:, :1], token)
    finer = torch.linspace(0, 1, 24)
    expected = torch.stack(torch.meshgrid(finer, finer, indexing="ij"), -1).reshape(1, 576, 2)
    assert (adapted[:, 1:] - expected).abs().max() < 0.05
    assert torch.allclose(adapt_relative_table(torch.full((169, 3), 2.0), 225), torch.full((225, 3), 2.0))


class Branches(nn.Module):
    """A stem of two convolutions side by side, as RepVGG's, and a convolution with as many channels as images."""

    def __init__(self, channels: int, inner: int = 5) -> None:
        super().__init__()
        self.three, self.one = nn.Conv2d(channels, 8, 3, padding=1), nn.Conv2d(channels, 8, 1)
        self.inner = nn.Conv2d(inner, 8, 1)


def test_every_convolution_on_the_image_is_adapted() -> None:
    source, model = Branches(3), Branches(4)
    report = load_weights(model, source.state_dict())
    assert sorted(report.adapted) == ["one.weight", "three.weight"]
    torch.testing.assert_close(model.one.weight[:, :3], source.one.weight * 3 / 4)
    with pytest.raises(WeightsError, match=r"inner\.weight \(8x5x1x1 in the file, 8x6x1x1 in the model\)"):
        load_weights(Branches(4, inner=6), source.state_dict())
    with pytest.raises(WeightsError, match=r"inner\.weight"):
        load_weights(Branches(3, inner=4), source.state_dict())


def vit(size: int, patch: int = 16) -> nn.Module:
    return torchvision.models.VisionTransformer(size, patch, 1, 2, 16, 32, num_classes=3)


@pytest.mark.parametrize("size", [32, 64, 96])
def test_vits_of_another_resolution(size: int) -> None:
    source, model = vit(64), vit(size)
    report = load_weights(model, source.state_dict())
    assert report.coverage == 1
    assert torch.equal(model.encoder.pos_embedding[:, 0], source.encoder.pos_embedding[:, 0])
    assert (size == 64) == ("encoder.pos_embedding" not in report.adapted)
    assert model(torch.zeros(1, 3, size, size)).isfinite().all()


def test_torchvisions_own_interpolation_agrees() -> None:
    source, model = vit(224), vit(384)
    with torch.no_grad():  # a table as smooth as trained ones are
        source.encoder.pos_embedding.copy_(torch.linspace(0, 1, 197)[None, :, None].expand(1, 197, 16))
    load_weights(model, source.state_dict())
    theirs = torchvision.models.vision_transformer.interpolate_embeddings(384, 16, dict(source.state_dict()))
    assert (model.encoder.pos_embedding - theirs["encoder.pos_embedding"]).abs().max() < 0.02


def test_another_patch_size_is_refused() -> None:
    with pytest.raises(WeightsError, match=r"conv_proj\.weight.*exclude=.*on_mismatch='skip'"):
        load_weights(vit(64, 16), vit(64, 32).state_dict())


def test_swin_of_another_window() -> None:
    def swin(window: int) -> nn.Module:
        return torchvision.models.SwinTransformer([4, 4], 8, [2], [2], [window, window], num_classes=3)

    source, model = swin(7), swin(8)
    index = model.features[1][0].attn.relative_position_index.clone()
    report = load_weights(model, source.state_dict())
    assert "window 7 to 8" in report.adapted["features.1.0.attn.relative_position_bias_table"]
    assert torch.equal(model.features[1][0].attn.relative_position_index, index)
    assert report.coverage == 1


def test_linear_and_1x1_convolution() -> None:
    linear, conv = nn.Sequential(nn.Linear(4, 3)), nn.Sequential(nn.Conv2d(4, 3, 1))
    report = load_weights(conv, linear.state_dict())
    assert report.adapted["0.weight"] == "3x4 read as 3x4x1x1"
    pixel = torch.rand(2, 4)
    torch.testing.assert_close(conv(pixel[:, :, None, None]).flatten(1), linear(pixel))
    load_weights(nn.Sequential(nn.Linear(4, 3)), conv.state_dict())


def net(classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, classes))


def test_rows_by_class_names(tmp_path: Path) -> None:
    source, model = net(3), net(2)
    file = {"state_dict": source.state_dict(), "class_names": ["ant", "bee", "cat"]}
    report = load_weights(model, file, class_names=["cat", "ant"])
    assert torch.equal(model[2].weight, source[2].weight[[2, 0]])
    assert torch.equal(model[2].bias, source[2].bias[[2, 0]])
    assert report.adapted["2.weight"] == "2 rows chosen by class names"
    same = net(3)
    same.class_names = ("bee", "ant", "cat")
    load_weights(same, {"state_dict": source.state_dict(), "hyper_parameters": {"class_names": ["ant", "bee", "cat"]}})
    assert torch.equal(same[2].weight, source[2].weight[[1, 0, 2]])
    other = net(3)
    fresh = other[2].weight.clone()
    report = load_weights(other, file, class_names=["ant", "bee", "dog"])
    assert torch.equal(other[2].weight, fresh)
    assert "dog" in report.mismatched["2.weight"]
    torch.save({"net": source.state_dict(), "class_to_idx": {"ant": 0, "cat": 2, "bee": 1}}, tmp_path / "f.pth")
    load_weights(model, tmp_path / "f.pth", class_names=["cat", "bee"])
    assert torch.equal(model[2].weight, source[2].weight[[2, 1]])
    save_weights(source, tmp_path / "f.safetensors", metadata={"class_names": json.dumps(["ant", "bee", "cat"])})
    load_weights(model, tmp_path / "f.safetensors", class_names=["bee", "ant"])
    assert torch.equal(model[2].weight, source[2].weight[[1, 0]])


def test_on_mismatch_error_refuses_what_could_be_adapted() -> None:
    with pytest.raises(WeightsError, match=r"on_mismatch='error': encoder\.pos_embedding"):
        load_weights(vit(64), vit(32).state_dict(), on_mismatch="error")
