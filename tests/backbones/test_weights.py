import functools
import hashlib
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import AlexNet_Weights, ResNet18_Weights

from lit_transfer.backbones import create_backbone
from lit_transfer.weights import WeightsError


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """An empty folder in the place of torch's cache."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path / "hub")
    yield tmp_path / "hub" / "checkpoints"
    torch.hub.set_dir(before)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A server on this machine: its address, and the folder that it serves."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()
        thread.join()


def publish(folder: Path, model: nn.Module, *, digest: str | None = None) -> str:
    """Save a state dict under a name with its hash, as torchvision does, or with a wrong one."""
    torch.save(model.state_dict(), folder / "new")
    digest = digest or hashlib.sha256((folder / "new").read_bytes()).hexdigest()[:8]
    return (folder / "new").rename(folder / f"model-{digest}.pth").name


@pytest.fixture
def resnet() -> nn.Module:
    torch.manual_seed(1)
    return torchvision.models.resnet18(weights=None)


@pytest.mark.parametrize("name", ["DEFAULT", "IMAGENET1K_V1", "ResNet18_Weights.IMAGENET1K_V1"])
@pytest.mark.parametrize("channels", [3, 1])
def test_named_weights_are_fetched_checked_and_loaded(
    name: str,
    channels: int,
    resnet: nn.Module,
    served: tuple[str, Path],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = publish(served[1], resnet)
    monkeypatch.setattr(ResNet18_Weights.IMAGENET1K_V1.value, "url", f"{served[0]}/{file}")
    backbone = create_backbone("resnet18", weights=name, in_channels=channels)
    assert torch.equal(backbone.layer4[1].bn2.weight, resnet.layer4[1].bn2.weight)
    kernel = resnet.conv1.weight if channels == 3 else resnet.conv1.weight.sum(1, keepdim=True)
    torch.testing.assert_close(backbone.conv1.weight, kernel)
    assert backbone.weights == "ResNet18_Weights.IMAGENET1K_V1"
    assert backbone.load_report is not None
    assert backbone.load_report.coverage == 1
    assert (cache / file).exists()
    assert capsys.readouterr().out == ""
    (served[1] / file).unlink()
    create_backbone("resnet18", weights=name)  # from the cache


def test_another_file_than_was_published_is_refused(
    resnet: nn.Module, served: tuple[str, Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = publish(served[1], resnet, digest="0123abcd")
    monkeypatch.setattr(ResNet18_Weights.IMAGENET1K_V1.value, "url", f"{served[0]}/{file}")
    with pytest.raises(WeightsError, match=r"cannot be fetched .*invalid hash value"):
        create_backbone("resnet18")
    assert not (cache / file).exists()


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/model-0123abcd.pth", "absent"])
def test_without_a_network_the_error_says_all(
    address: str, served: tuple[str, Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{served[0]}/model-0123abcd.pth" if address == "absent" else address
    monkeypatch.setattr(AlexNet_Weights.IMAGENET1K_V1.value, "url", url)
    with pytest.raises(WeightsError) as caught:
        create_backbone("alexnet")
    message = str(caught.value)
    assert message.startswith(f"AlexNet_Weights.IMAGENET1K_V1 cannot be fetched from {url} (")
    assert f"Put the file there as {cache / 'model-0123abcd.pth'}" in message
    assert "weights=PATH" in message
    assert "weights=None" in message


def test_a_damaged_cache_is_named(cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "alexnet-owt-7be5be79.pth").write_bytes(b"<html>")
    with pytest.raises(WeightsError, match=r"alexnet-owt-7be5be79\.pth is damaged: delete it"):
        create_backbone("alexnet")


def test_the_state_of_an_old_format_is_kept(
    served: tuple[str, Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = torchvision.models.mnasnet0_5(weights=None)
    weights = torchvision.models.MNASNet0_5_Weights.IMAGENET1K_V1
    monkeypatch.setattr(weights.value, "url", f"{served[0]}/{publish(served[1], model)}")
    assert torch.equal(create_backbone("mnasnet0_5").layers[0].weight, model.layers[0].weight)


def test_a_file_with_another_classifier_is_loaded(tmp_path: Path) -> None:
    model = torchvision.models.resnet18(weights=None, num_classes=7)
    torch.save(model.state_dict(), tmp_path / "seven.pth")
    backbone = create_backbone("resnet18", weights=str(tmp_path / "seven.pth"))
    assert torch.equal(backbone.conv1.weight, model.conv1.weight)


def test_a_file_of_another_architecture_is_refused(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet34(weights=None).state_dict(), tmp_path / "other.pth")
    with pytest.raises(WeightsError):
        create_backbone("resnet18", weights=str(tmp_path / "other.pth"))


def test_auxiliary_classifiers_of_a_file_are_left_out(tmp_path: Path) -> None:
    model = torchvision.models.googlenet(weights=None, init_weights=False)
    torch.save(model.state_dict(), tmp_path / "googlenet.pth")
    backbone = create_backbone("googlenet", weights=str(tmp_path / "googlenet.pth"))
    assert torch.equal(backbone.conv1.conv.weight, model.conv1.conv.weight)


def test_a_strangers_imagenet_features_are_loaded(real: Path) -> None:
    file = real / "weights" / "squeezenet1_0_imagenet_frozen_HamzaElhmd.pt"
    backbone = create_backbone("squeezenet1_0", weights=str(file))
    assert backbone.load_report is not None
    assert backbone.load_report.coverage == 1
