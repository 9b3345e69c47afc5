"""Where a stage gives a feature map, and its arrangement; CPU, float32."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lit_transfer.stages import StageMap, noted, place_axes, stage_maps, trace_stages


class Patches(nn.Module):
    """Patches of 8 pixels as tokens, after some that are no place."""

    def __init__(self, prefix: int, *, conv: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 8, 8) if conv else None
        self.project = nn.Linear(3 * 8 * 8, 6)
        self.prefix = nn.Parameter(torch.zeros(1, prefix, 6))
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 6)) for _ in range(3))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.conv is not None:
            tokens = self.conv(x).flatten(2).transpose(1, 2)
        else:
            tokens = self.project(nn.functional.unfold(x, 8, stride=8).transpose(1, 2))
        tokens = torch.cat([self.prefix.expand(len(x), -1, -1), tokens], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens.mean(1))


def maps_of(module: nn.Module, size: int = 64) -> dict[str, StageMap]:
    return stage_maps(module, trace_stages(module, size).stages, size, 3)


@pytest.mark.parametrize(("prefix", "conv"), [(0, True), (1, True), (5, True), (0, False), (1, False)])
@pytest.mark.parametrize("size", [16, 64, 224])
def test_tokens_are_put_in_their_places(prefix: int, conv: bool, size: int) -> None:
    module = Patches(prefix, conv=conv)
    maps = maps_of(module, size)
    assert len(maps) == len(trace_stages(module, size).stages) - 1
    place = maps["stage2"]
    assert (place.prefix, place.stride, place.channels, place.layout) == (prefix, 8, 6, "tokens")
    tokens = torch.arange(prefix + 2 * 3.0).reshape(1, -1, 1).expand(1, -1, 6)
    arranged = place.arranged(tokens, 16, 24)
    assert arranged.shape == (1, 6, 2, 3)
    assert torch.equal(arranged[0, 0], prefix + torch.arange(6.0).reshape(2, 3))


def test_a_wrong_number_of_tokens_is_told() -> None:
    place = StageMap("blocks.1", 6, 8, "tokens", 1)
    with pytest.raises(
        ValueError, match=r"blocks.1 gave 9 tokens for images of 16 x 24 pixels: expected 1 and one for"
    ):
        place.arranged(torch.zeros(1, 9, 6), 16, 24)
    with pytest.raises(ValueError, match=r"blocks.1 gave shape \(2, 6\): expected tokens"):
        place.of(torch.zeros(2, 6))
    with pytest.raises(ValueError, match=r"blocks.1 gave NoneType: expected tokens"):
        place.of(None)


@pytest.mark.parametrize("size", [28, 32, 45, 64, 224, 299])
def test_the_stride_is_exact_whatever_the_border_loses(size: int) -> None:
    layers = [nn.Sequential(nn.Conv2d(a, b, 3, 2), nn.ReLU()) for a, b in [(3, 4), (4, 5), (5, 6)]]
    maps = maps_of(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)), size)
    assert [(m.stride, m.channels) for m in maps.values()] == [(2, 4), (4, 5), (8, 6)]


def test_a_map_that_does_not_follow_the_image_is_left_out() -> None:
    one, two = nn.Conv2d(3, 4, 4, 4), nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Conv2d(4, 8, 3, padding=1))
    module = nn.Sequential(one, two, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    assert [m.unit for m in maps_of(module).values()] == ["0"]


def test_the_map_is_taken_after_norm_and_activation_and_before_pooling() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 4, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 5, 1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(5, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2),
    )  # fmt: skip
    assert [m.unit for m in maps_of(module, 16).values()] == ["2", "5", "7"]


@pytest.mark.parametrize("following", [lambda: nn.ReLU(inplace=True), lambda: nn.SiLU(inplace=True)])
def test_what_is_changed_in_place_later_on_is_known(following: Callable[[], nn.Module]) -> None:
    class Blocks(nn.Sequential):
        pass

    blocks = [Blocks(following(), nn.Conv2d(a, b, 2, 2), nn.Conv2d(b, b, 1)) for a, b in [(4, 5), (5, 6)]]
    maps = maps_of(nn.Sequential(nn.Conv2d(3, 4, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)))
    assert [m.overwritten for m in maps.values()] == [True, True, False]
    output = torch.zeros(1, 4, 2, 2)
    assert maps["stem"].of(output) is not output
    assert maps["stage2"].of(output) is output


def test_hooks_are_gone_after_a_run_that_failed() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(4, 5))
    with pytest.raises(RuntimeError), noted(module, {"a": "0", "b": "1"}, lambda key, output: output.shape) as seen:
        module(torch.zeros(1, 2))
    assert seen == {"a": (1, 3)}
    assert not any(layer._forward_hooks for layer in module)


@pytest.mark.parametrize(
    ("shape", "axes"), [((5,), ()), ((9, 5), (0,)), ((5, 3, 3), (1, 2)), ((3, 3, 5), (0, 1)), ((3, 3, 3), (1, 2))]
)
def test_places_are_told_from_channels(shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    assert tuple(place_axes(shape)) == axes
