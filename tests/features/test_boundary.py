import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_transfer import freeze
from lit_transfer.backbones import create_backbone
from lit_transfer.features import Boundary, Serving, check_still, find_boundary, frozen_state, outline_of, run_until
from lit_transfer.stages import Stage, stages_of


class Net(nn.Module):
    """Three stages by its own word; `skip` lets the first one's output go around the second."""

    def __init__(self, skip: bool = False, tuples: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.three = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 5)
        self.norm = nn.BatchNorm2d(4)
        self.skip, self.tuples = skip, tuples
        self.shift = nn.Parameter(torch.zeros(5))
        self.stages = (
            Stage("stem", ("one", "norm"), ("one.weight", "one.bias", "norm.weight", "norm.bias"), None),
            Stage("stage1", ("two",), ("two.weight", "two.bias"), None),
            Stage("stage2", ("three",), ("three.weight", "three.bias", "shift"), None),
        )

    def forward(self, x: Tensor) -> Any:
        first = self.norm(self.one(x)).relu()
        second = self.two(first)
        out = self.three((second + 0 * first if self.skip else second).mean((2, 3))) + self.shift
        return (out, second) if self.tuples else out


def frozen(net: nn.Module, *what: str) -> nn.Module:
    freeze(net, what)
    return net


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def units(net: nn.Module) -> Iterator[str]:
    return (name for name, module in net.named_modules() if "forward" in module.__dict__)


def test_the_frozen_front_ends_before_the_first_stage_that_trains() -> None:
    assert find_boundary(Net()) is None
    assert find_boundary(frozen(Net(), "stage1")) is None
    assert find_boundary(frozen(Net(), "stem")) == Boundary("norm", ("one",), ("stem",))
    assert find_boundary(frozen(Net(), "stem", "stage1")) == Boundary("two", ("one", "norm"), ("stem", "stage1"))
    assert find_boundary(frozen(Net(), "all")) == Boundary("", (), ("all",))
    assert find_boundary(nn.Identity()) is None


def test_a_norm_that_trains_in_a_frozen_stage_ends_the_front() -> None:
    net = Net()
    freeze(net, ["stem", "stage1"], train_norms=True)
    assert find_boundary(net) is None


@pytest.mark.parametrize("what", [("stem",), ("stem", "stage1"), ("all",)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_served_feature_gives_the_output_of_the_image_bit_for_bit_and_nothing_stays(
    what: tuple[str, ...], layout: torch.memory_format, images: Tensor
) -> None:
    net = frozen(Net(), *what)
    given = images.contiguous(memory_format=layout)
    boundary = find_boundary(net)
    assert boundary is not None
    outline, taken, feature = outline_of(lambda: net(given), net, boundary)
    assert taken is given
    direct, state = net(given), {name: value.clone() for name, value in net.state_dict().items()}
    serving = Serving(net, boundary, outline)
    carried = feature.contiguous().view(len(feature), *outline.carried)
    assert torch.equal(net(carried), direct)
    assert torch.equal(net(given), direct), "images run as before"
    assert torch.allclose(net(carried[:1]), net(given[:1]), rtol=1e-5), "any batch size"
    serving.remove()
    assert list(units(net)) == []
    assert torch.equal(net(given), direct)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_features_of_several_shapes_are_served_side_by_side(images: Tensor) -> None:
    net = frozen(Net(), "stem")
    boundary = find_boundary(net)
    assert boundary is not None
    larger = torch.randn(2, 3, 12, 10)
    small, large = (outline_of(lambda x=x: net(x), net, boundary) for x in (images, larger))
    expected = net(images), net(larger)
    serving = Serving(net, boundary, small[0])
    serving.add(large[0])
    assert torch.equal(net(small[2]), expected[0])
    assert torch.equal(net(large[2]), expected[1])
    serving.remove()


def test_serving_goes_along_with_a_deep_copy(images: Tensor) -> None:
    net = frozen(Net(), "stem")
    boundary = find_boundary(net)
    assert boundary is not None
    outline, _, feature = outline_of(lambda: net(images), net, boundary)
    serving = Serving(net, boundary, outline)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        net.three.weight.zero_()
        net.three.bias.zero_()
    serving.remove()
    assert torch.equal(twin(feature), twin(images))
    assert twin(feature).any()


def test_what_crosses_beside_the_feature_shows_even_where_it_is_multiplied_by_zero(images: Tensor) -> None:
    net = frozen(Net(skip=True), "stem", "stage1")
    boundary = find_boundary(net)
    assert boundary is not None
    outline, _, feature = outline_of(lambda: net(images), net, boundary)
    serving = Serving(net, boundary, outline)
    assert net(feature).isnan().all()
    serving.remove()


def test_a_feature_of_an_images_own_shape_is_carried_in_another() -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2))
    freeze(net, "0")
    boundary = Boundary("0", (), ("stem",))
    x = torch.randn(3, 6)
    outline, _, feature = outline_of(lambda: net(x), net, boundary)
    assert outline.carried == (1, 6)
    serving = Serving(net, boundary, outline)
    assert torch.equal(net(feature.view(3, 1, 6)), net(x))
    serving.remove()


def test_an_unrun_step_an_answer_of_several_tensors_and_a_gradient_are_refused(images: Tensor) -> None:
    net = frozen(Net(tuples=True), "all")
    whole = Boundary("", (), ("all",))
    with pytest.raises(TypeError, match="the output of the backbone is a tuple"):
        outline_of(lambda: net(images), net, whole)
    with pytest.raises(ValueError, match=r"the backbone \(Net\) was not called"):
        run_until(lambda: None, net, None)
    net = frozen(Net(), "stage1")
    with pytest.raises(ValueError, match="output of two has a gradient: something that trains"):
        outline_of(lambda: net(images), net, Boundary("two", ("one", "norm"), ("stage1",)))


def test_a_run_that_is_ended_cannot_be_caught_and_leaves_no_hook(images: Tensor) -> None:
    net, after = Net(), []

    def step() -> None:
        try:
            net(images)
        except Exception:
            after.append("caught")
        after.append("went on")

    assert torch.equal(run_until(step, net, None)[0], images)
    assert torch.equal(run_until(step, net, net.one)[1], net.one(images))
    assert after == []
    assert not net._forward_pre_hooks
    assert not net.one._forward_hooks


def test_what_changes_in_training_is_refused_by_name() -> None:
    net = Net()
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    whole = Boundary("", (), ("all",))
    with pytest.raises(ValueError, match=r"the backbone \(Net\) has no gradient but is in train mode"):
        check_still(net, whole)
    with pytest.raises(ValueError, match=r"norm \(BatchNorm2d\) has no gradient but is in train mode"):
        check_still(net, Boundary("norm", ("one",), ("stem",)))
    check_still(net, Boundary("one", (), ("stem",)))
    check_still(net.eval(), whole)
    net.norm = nn.BatchNorm2d(4, track_running_stats=False).eval()
    with pytest.raises(ValueError, match=r"norm \(BatchNorm2d\) keeps no running statistics"):
        check_still(net, whole)


def test_the_frozen_state_is_what_the_feature_depends_on() -> None:
    net = frozen(Net(), "stem")
    boundary = find_boundary(net)
    assert boundary is not None
    buffers = ["norm.running_mean", "norm.running_var", "norm.num_batches_tracked"]
    assert list(frozen_state(net, boundary)) == ["one.weight", "one.bias", "norm.weight", "norm.bias", *buffers]
    assert set(frozen_state(net, Boundary("", (), ("all",)))) == set(net.state_dict())


@pytest.mark.parametrize("name", ["squeezenet1_0", "mobilenet_v3_small", "swin_t", "timm/vit_tiny_patch16_224"])
def test_every_boundary_of_real_architectures_serves_bit_for_bit(name: str) -> None:
    """Batch of 2, float32, one thread, CPU; random weights."""
    torch.manual_seed(0)
    backbone = create_backbone(name, weights=None).eval()
    side = backbone.preprocessing.crop
    images = torch.randn(2, len(backbone.preprocessing.mean), side, side)
    stages = stages_of(backbone)
    with torch.no_grad():
        direct = backbone(images)
        for count in {1, len(stages) // 2, len(stages) - 1}:
            freeze(backbone, [stage.name for stage in stages[:count]])
            boundary = find_boundary(backbone)
            assert boundary is not None
            outline, _, feature = outline_of(lambda: backbone(images), backbone, boundary)
            serving = Serving(backbone, boundary, outline)
            assert torch.equal(backbone(feature.contiguous().view(2, *outline.carried)), direct), boundary
            serving.remove()
