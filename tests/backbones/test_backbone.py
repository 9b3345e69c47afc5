import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lit_transfer.backbones import Backbone, create_backbone
from lit_transfer.stages import stages_of, trace_stages


class Flagged(nn.Module):
    """Does something else in training, by its own flag; freezes its normalisation in `train`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 2)
        self.token = nn.Parameter(torch.zeros(8))
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def train(self, mode: bool = True) -> "Flagged":
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        features = self.norm(self.conv(x)).mean((2, 3)) + self.token
        return self.fc(features * 0 if self.training else features)


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(0)
    return create_backbone("squeezenet1_1", weights=None).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def saved(backbone: Backbone) -> Backbone:
    file = io.BytesIO()
    torch.save(backbone, file)
    file.seek(0)
    loaded: Backbone = torch.load(file, weights_only=False)
    return loaded


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b)), saved])
def test_a_copy_gives_the_same_and_is_independent(
    backbone: Backbone, images: Tensor, copied: Callable[[Backbone], Backbone]
) -> None:
    before, other = backbone(images), copied(backbone)
    assert torch.equal(other(images), before)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert not other(images).any()
    assert torch.equal(backbone(images), before)
    assert other.trace == backbone.trace


def test_parameters_can_be_replaced_from_outside(backbone: Backbone, images: Tensor) -> None:
    zeros = {name: torch.zeros_like(parameter) for name, parameter in backbone.named_parameters()}
    assert not torch.func.functional_call(backbone, zeros, (images,)).any()
    assert backbone(images).any()


def test_averaged_models_and_other_dtypes_work(backbone: Backbone, images: Tensor) -> None:
    assert torch.equal(AveragedModel(backbone)(images), backbone(images))
    assert backbone.double()(images.double()).dtype == torch.float64


def test_it_can_be_made_empty_and_filled(backbone: Backbone, images: Tensor) -> None:
    empty = copy.deepcopy(backbone).to("meta").to_empty(device="cpu")
    empty.load_state_dict(backbone.state_dict())
    assert torch.equal(empty(images), backbone(images))


def test_it_compiles_as_one_graph_in_both_modes(images: Tensor) -> None:
    backbone = create_backbone(Flagged())
    compiled = torch.compile(backbone, backend="eager", fullgraph=True)
    for training in (False, True, False):
        backbone.train(training)
        assert torch.equal(compiled(images), backbone(images))


def test_it_can_be_exported_and_traced_by_fx(backbone: Backbone, images: Tensor) -> None:
    exported = torch.export.export(backbone, (images,)).module()
    assert torch.allclose(exported(images), backbone(images), atol=1e-6)
    assert torch.equal(torch.fx.symbolic_trace(backbone)(images), backbone(images))


def test_modules_can_be_exchanged() -> None:
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(create_backbone(Flagged()))
    assert isinstance(converted.norm, nn.SyncBatchNorm)
    assert isinstance(converted._upstream.norm, nn.SyncBatchNorm)


def test_the_flag_of_the_model_follows(images: Tensor) -> None:
    backbone = create_backbone(Flagged()).train()
    assert not backbone(images).any()
    assert not backbone.norm.training
    assert backbone.eval()(images).any()
    backbone.training = True
    assert not backbone(images).any()


def test_direct_members_keep_their_names() -> None:
    backbone = create_backbone(Flagged())
    assert "token" in backbone.state_dict()
    assert "calls" in dict(backbone.named_buffers())
    backbone.register_buffer("late", torch.zeros(()), persistent=False)
    assert not {"calls", "late"} & backbone.state_dict().keys()
    assert not {name for name in backbone.state_dict() if name.startswith("fc")}


def test_hooks_of_the_model_still_run(images: Tensor) -> None:
    model, seen = Flagged(), []
    model.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    backbone = create_backbone(model)
    seen.clear()  # tracing runs them too
    backbone(images)
    assert seen == [(2, 8)]


def test_old_formats_are_read_by_the_model() -> None:
    old = torchvision.models.mnasnet0_5(weights=None)
    backbone = create_backbone("mnasnet0_5", weights=None)
    state = backbone.state_dict()
    assert state._metadata[""]["version"] == 2
    state._metadata[""]["version"] = 1
    with pytest.warns(UserWarning, match="previous version"), pytest.raises(RuntimeError, match="size mismatch"):
        backbone.load_state_dict(state)  # the stem is rebuilt as it was in version 1
    assert backbone._version == 1
    assert backbone.get_parameter("layers.0.weight").shape[0] == 32
    assert old.layers[0].out_channels == 16


class Maps(nn.Module):
    """An encoder without a classifier, whose output still has places."""

    def __init__(self, output: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.conv, self.norm, self.output = nn.Conv2d(3, 6, 4, 4), nn.BatchNorm2d(6), output

    def forward(self, x: Tensor) -> object:
        return self.output(self.norm(self.conv(x)))


@pytest.mark.parametrize(
    "output",
    [
        lambda x: x,
        lambda x: x.permute(0, 2, 3, 1),
        lambda x: x.flatten(2).transpose(1, 2),
        lambda x: x.mean((2, 3)),
        lambda x: (x, x.sum()),
        lambda x: {"features": x, "more": x},
    ],
    ids=["channels first", "channels last", "tokens", "pooled", "tuple", "dictionary"],
)
def test_features_are_vectors_whatever_the_model_gives(output: Callable[[Tensor], object]) -> None:
    backbone = create_backbone(Maps(output), input_size=64).eval()
    images = torch.rand(2, 3, 64, 64)
    assert backbone.num_features == 6
    torch.testing.assert_close(backbone(images), backbone.norm(backbone.conv(images)).mean((2, 3)))


def test_stages_are_known_without_tracing_again(backbone: Backbone) -> None:
    assert stages_of(backbone) is backbone.trace.stages
    assert [stage.name for stage in backbone.trace.stages] == ["stem", "stage1", "stage2", "stage3"]
    again = trace_stages(backbone, classifier=None).stages
    assert [stage.parameters for stage in again] == [stage.parameters for stage in backbone.trace.stages]


def test_a_temperature_of_the_head_stays_with_the_last_stage() -> None:
    class Tempered(Flagged):
        def __init__(self) -> None:
            super().__init__()
            self.temperature = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.temperature

    stages = create_backbone(Tempered()).trace.stages
    assert "temperature" in stages[-1].parameters


def test_members_that_would_be_hidden_are_refused() -> None:
    class Named(Flagged):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.Parameter(torch.ones(2))

    with pytest.raises(ValueError, match="Named has members named weights, which a Backbone uses for itself"):
        create_backbone(Named())


def test_it_says_what_it_is(backbone: Backbone) -> None:
    assert "squeezenet1_1, weights=None, num_features=512" in str(backbone)
