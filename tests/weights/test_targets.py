"""Models of special kinds: sharded, on meta, tied, quantised. Each is filled, or refused by name and left alone."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from lit_transfer.weights import WeightsError, load_weights


def network(classes: int = 2) -> nn.Sequential:
    """Five rows do not divide by two: one shard is smaller than the other."""
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, classes))


@pytest.fixture
def gloo() -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.fixture
def saved(tmp_path: Path) -> tuple[nn.Sequential, Path]:
    torch.manual_seed(1)
    source = network().eval()
    torch.save(source.state_dict(), tmp_path / "f.pth")
    return source, tmp_path / "f.pth"


@pytest.mark.parametrize("meta", [False, True])
def test_a_sharded_model_is_filled(gloo: DeviceMesh, saved: tuple[nn.Sequential, Path], meta: bool) -> None:
    source, path = saved
    for given in (path, source.state_dict()):
        with torch.device("meta" if meta else "cpu"):
            model = network().eval()
        fully_shard(model, mesh=gloo)
        before = list(model.parameters())
        optimizer = torch.optim.AdamW(model.parameters())
        assert load_weights(model, given).coverage == 1
        assert all(isinstance(p, DTensor) and p is old for p, old in zip(model.parameters(), before, strict=True))
        images = torch.rand(3, 4)
        torch.testing.assert_close(model(images), source(images))
        model(images).sum().backward()
        optimizer.step()
        assert not torch.equal(model[0].weight.full_tensor(), source[0].weight)


def test_a_sharded_model_is_filled_after_it_was_run(gloo: DeviceMesh, saved: tuple[nn.Sequential, Path]) -> None:
    source, path = saved
    model = fully_shard(network().eval(), mesh=gloo)
    images = torch.rand(3, 4)
    model(images)  # and its parameters stay gathered until a backward pass
    load_weights(model, path)
    model.reshard()  # what was written into the gathered copies would be lost now
    torch.testing.assert_close(model(images), source(images))


def test_a_sharded_model_keeps_a_head_of_other_classes(gloo: DeviceMesh, saved: tuple[nn.Sequential, Path]) -> None:
    model = fully_shard(network(classes=3), mesh=gloo)
    fresh = model[2].weight.full_tensor().clone()
    assert load_weights(model, saved[1]).head == ("2",)
    assert torch.equal(model[2].weight.full_tensor(), fresh)
    assert torch.equal(model[0].weight.full_tensor(), saved[0][0].weight)


@pytest.fixture
def second_of_two() -> Iterator[DeviceMesh]:
    """A fake process group of two: whatever were sent would not arrive."""
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    yield init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize("placement", [Shard(0), Shard(1), Replicate()])
def test_each_process_gets_its_own_part(
    second_of_two: DeviceMesh, saved: tuple[nn.Sequential, Path], placement: Any, meta: bool
) -> None:
    source, path = saved
    with torch.device("meta" if meta else "cpu"):
        model = network()
    for layer in (model[0], model[2]):
        shards = distribute_tensor(layer.weight.detach(), second_of_two, [placement], src_data_rank=None)
        layer.weight = nn.Parameter(shards)
    load_weights(model, path)
    for name in ("0.weight", "2.weight"):
        whole, local = source.get_parameter(name), model.get_parameter(name).to_local()
        chunks = (whole, whole) if placement == Replicate() else whole.chunk(2, placement.dim)
        assert torch.equal(local, chunks[1])
        assert not meta or local.untyped_storage().nbytes() == local.nbytes  # not a view of the whole
    assert torch.equal(model[0].bias, source[0].bias)


def test_a_file_of_one_process_shards_is_told(second_of_two: DeviceMesh, tmp_path: Path) -> None:
    shard = distribute_tensor(torch.rand(5, 4), second_of_two, [Shard(0)], src_data_rank=None)
    torch.save({"0.weight": shard, "0.bias": torch.rand(5)}, tmp_path / "f")
    with pytest.raises(WeightsError, match=r"0\.weight \(it is one process' part .*full_state_dict=True"):
        load_weights(nn.Sequential(nn.Linear(4, 5)), tmp_path / "f")
    with pytest.raises(WeightsError, match=r"0\.weight \(it is a tensor of class DTensor\)"):
        load_weights(nn.Sequential(nn.Linear(4, 5)), {"0.weight": shard, "0.bias": torch.rand(5)})


def test_a_file_of_a_sharded_model_that_is_whole_is_read(gloo: DeviceMesh, tmp_path: Path) -> None:
    source = fully_shard(network(), mesh=gloo)
    torch.save(source.state_dict(), tmp_path / "f")
    model = network()
    load_weights(model, tmp_path / "f")
    assert torch.equal(model[0].weight, source[0].weight.full_tensor())


def test_a_refused_file_leaves_a_sharded_model_alone(gloo: DeviceMesh, saved: tuple[nn.Sequential, Path]) -> None:
    model = fully_shard(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(6, 2)), mesh=gloo)
    before = [parameter.full_tensor().clone() for parameter in model.parameters()]
    with pytest.raises(WeightsError, match=r"2\.weight"):
        load_weights(model, saved[1])
    assert all(torch.equal(p.full_tensor(), old) for p, old in zip(model.parameters(), before, strict=True))


def test_the_older_fsdp_is_refused_by_name(gloo: DeviceMesh, saved: tuple[nn.Sequential, Path]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch advises fully_shard, as we do
        model = nn.Sequential(FullyShardedDataParallel(network(), device_id=torch.device("cpu"), use_orig_params=True))
    with pytest.raises(WeightsError, match=r"^0 is wrapped by FullyShardedDataParallel: .*fully_shard"):
        load_weights(model, saved[1])


def test_quantised_layers_are_refused_by_name(saved: tuple[nn.Sequential, Path]) -> None:
    torch.backends.quantized.engine = torch.backends.quantized.supported_engines[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch means to move them to another library
        model = torch.ao.quantization.quantize_dynamic(network(), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(WeightsError, match=r"^0 is a quantised layer.*before it is quantised"):
        load_weights(model, saved[1])


class Wrapped(Tensor):
    """A tensor of another library: values in other tensors, which only its own operations know."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Wrapped":
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(tensors: dict[str, Tensor], *_: Any) -> "Wrapped":
        return Wrapped(tensors["inner"])

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError("it was touched")


def test_tensors_of_other_libraries_are_refused_by_name(saved: tuple[nn.Sequential, Path]) -> None:
    source, path = saved
    model = network()
    model[0]._parameters["weight"] = Wrapped(torch.zeros(5, 4))
    bias = model[0].bias.clone()
    with pytest.raises(WeightsError, match=r"0\.weight \(the model's is a tensor of class Wrapped, .*exclude="):
        load_weights(model, path)
    assert torch.equal(model[0].bias, bias)
    load_weights(model, path, exclude=["0.weight"])
    assert torch.equal(model[0].bias, source[0].bias)
    with torch.no_grad():
        model[0]._parameters["weight"] = nn.Parameter(torch.eye(5, 4).to_sparse(), requires_grad=False)
    with pytest.raises(WeightsError, match=r"0\.weight \(the model's is a sparse tensor \(torch\.sparse_coo\)"):
        load_weights(model, path)


def test_a_tied_model_on_meta_stays_tied(saved: tuple[nn.Sequential, Path]) -> None:
    def tied() -> nn.Sequential:
        model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 2))
        model[1].weight = model[0].weight
        return model

    source = tied()
    with torch.device("meta"):
        model = tied()
    parameter = model[0].weight
    load_weights(model, source.state_dict())
    assert model[1].weight is model[0].weight is parameter
    assert torch.equal(parameter, source[0].weight)
    assert parameter.requires_grad


def test_what_is_tied_in_the_model_and_not_in_the_file_is_no_guess(tmp_path: Path) -> None:
    model, free = (nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(2)), nn.Linear(4, 2)) for _ in "ab")
    model[1].weight = model[0].weight
    before = model[2].weight.clone()
    torch.save(free.state_dict(), tmp_path / "f.pth")
    with pytest.raises(WeightsError, match=r"0\.weight and 1\.weight are one tensor.*exclude=\['1\.weight'\]"):
        load_weights(model, tmp_path / "f.pth")
    assert torch.equal(model[2].weight, before)
    load_weights(model, tmp_path / "f.pth", exclude=["1.weight"])
    assert torch.equal(model[1].weight, free[0].weight)
    free[1].weight.data.copy_(free[0].weight)
    load_weights(model, free.state_dict())  # two, with equal values
