"""A vector at the end of each stage, of one run; float32, CPU."""

import pytest
import torch
from torch import Tensor, nn

from lit_transfer import create_backbone
from lit_transfer.features._pooled import PooledStages, pooled

NAMES = ["resnet18", "squeezenet1_1", "swin_t", "timm/vit_tiny_patch16_224"]


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((2, 5), ()), ((2, 9, 5), (1,)), ((2, 5, 3, 3), (2, 3)), ((2, 3, 3, 5), (1, 2)), ((2, 5, 3, 4), (2, 3))],
    ids=["vector", "tokens", "map", "channels last", "oblong map"],
)
def test_channels_are_kept_and_the_rest_is_averaged(shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    output = torch.rand(shape)
    expected = output.mean(axes) if axes else output
    assert torch.equal(pooled(output), expected)
    assert torch.equal(pooled({"features": output}), expected)


@pytest.mark.parametrize("output", [None, torch.rand(2), torch.rand(2, 3, 4, 5, 6), torch.ones(2, 3, dtype=int)])
def test_what_is_no_feature_is_none(output: object) -> None:
    assert pooled(output) is None


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_in_one_run_and_the_last_one_as_the_head_takes_it(name: str) -> None:
    torch.manual_seed(0)
    backbone = create_backbone(name, weights=None, input_size=32).eval()
    images = torch.rand(3, 3, 32, 32)
    outputs: dict[str, Tensor] = {}
    stages = backbone.trace.stages
    for stage in stages[:-1]:
        backbone.get_submodule(stage.modules[-1]).register_forward_hook(
            lambda module, args, output, name=stage.name: outputs.update({name: pooled(output)})
        )
    with torch.inference_mode():
        found = PooledStages(backbone, images[:2])
        vectors = found(images)
        outputs[stages[-1].name] = backbone(images)
    assert list(vectors) == list(found.widths) == [stage.name for stage in stages]
    assert found._hooked is not backbone
    for name, vector in vectors.items():
        assert vector.shape == (3, found.widths[name])
        torch.testing.assert_close(vector, outputs[name], rtol=1e-4, atol=1e-4 * outputs[name].abs().max().item())


class Looks(nn.Module):
    """Gives something else when its normalisation was folded away."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.two = nn.Linear(4, 6)
        self.three = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        scale = 2.0 if isinstance(self.one[1], nn.BatchNorm2d) else 3.0
        return self.three(self.two(scale * self.one(images).flatten(2).mT))


def test_where_a_copy_gives_something_else_the_backbone_runs_itself() -> None:
    backbone = Looks().eval()
    images = torch.rand(2, 3, 8, 8)
    with torch.inference_mode():
        found = PooledStages(backbone, images)
        assert found._run is backbone
        last = list(found.widths)[-1]
        assert torch.equal(found(images)[last], backbone(images).mean(1))


def test_a_norm_by_the_batch_is_refused() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    with pytest.raises(ValueError, match="what else is in the batch"):
        PooledStages(backbone, torch.rand(2, 3, 8, 8))


def test_vectors_of_a_large_batch_come_in_its_order() -> None:
    torch.manual_seed(0)
    backbone = create_backbone("squeezenet1_1", weights=None).eval()
    images = torch.rand(11, 3, 224, 224)
    with torch.inference_mode():
        stages = PooledStages(backbone, images[:2])
        together, alone = stages(images), stages(images[9:10])
    assert all(len(vectors) == 11 for vectors in together.values())
    for name, vector in alone.items():
        assert torch.allclose(together[name][9:10], vector, rtol=1e-4, atol=1e-5)
