"""The idioms of five tutorials on saving, loading and transfer, each beside the one line that does it here.

The README has the same lines in a table, and the last test holds it to them.
"""

import collections
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from lit_transfer import create_backbone, freeze, frozen_names, load_weights, open_checkpoint, save_weights
from lit_transfer.cli import main


class ClassNet(nn.Module):
    """The small network of the tutorials."""

    def __init__(self, classes: int = 2, channels: int = 3, kernel: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4, kernel)
        self.bn1 = nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())
        self.fc = nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(self.bn1(self.conv1(x)))
        return self.fc(x.mean((2, 3)))


def equal(one: nn.Module, other: nn.Module, but: tuple[str, ...] = ()) -> bool:
    """Whether the states are equal, names that begin with one of `but` excepted; wrappers are looked through."""
    mine, theirs = (
        {
            n.replace("module.", ""): t
            for n, t in m.state_dict().items()
            if not n.replace("module.", "").startswith(but or "!")
        }
        for m in (one, other)
    )
    return mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file `model.pth` in an empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return Path("model.pth")


def test_save_and_load_by_state_dict(path: Path) -> None:
    net, model = ClassNet(), ClassNet()
    torch.save(net.state_dict(), path)  # model.load_state_dict(torch.load(path))
    load_weights(model, "model.pth")
    assert equal(model, net)


def test_save_and_load_whole(path: Path) -> None:
    net, model = ClassNet(), ClassNet()
    torch.save(net, path)  # model = torch.load(path, weights_only=False), and the class must be importable
    load_weights(model, "model.pth")
    assert equal(model, net)


def test_save_parameters_alone(path: Path) -> None:
    net, model = ClassNet(), ClassNet()
    save_weights(net, "model.pth")  # torch.save(net.state_dict(), path)
    model.load_state_dict(torch.load(path))
    assert equal(model, net)
    save_weights(nn.DataParallel(net), "model.pth", strip="module")  # torch.save(net.module.state_dict(), path)
    model.load_state_dict(torch.load(path))
    assert equal(model, net)


def test_model_state_dict_and_optimizer_in_one_dictionary(path: Path) -> None:
    net, model = ClassNet(), ClassNet()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    content = {
        "model": ClassNet(),
        "model_state_dict": net.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "epoch": 4,
    }
    torch.save(content, path)  # checkpoint = torch.load(path); model = checkpoint["model"]; model.load_state_dict(...)
    load_weights(model, "model.pth")
    assert equal(model, net)
    assert open_checkpoint("model.pth").root["epoch"] == 4


def test_part_of_a_pretrained_model(path: Path) -> None:
    class Mine(ClassNet):
        def __init__(self) -> None:
            super().__init__()
            self.layer2 = nn.Conv2d(4, 4, 1)

    net, model = ClassNet(), Mine()
    torch.save(net.state_dict(), path)  # {k: v for k, v in pretrained.items() if k in model_dict}; update; load
    load_weights(model, "model.pth", head=["fc", "layer2"])
    assert equal(model, net, but=("layer2",))


def test_another_last_layer(path: Path) -> None:
    net, model = ClassNet(1000), ClassNet(2)
    torch.save(
        net.state_dict(), path
    )  # model = net(1000); load_state_dict; model.fc = nn.Linear(model.fc.in_features, 2)
    assert load_weights(model, "model.pth").head == ("fc",)
    assert equal(model, net, but=("fc",))


def test_a_first_layer_with_four_channels(path: Path) -> None:
    net, model = ClassNet(), ClassNet(channels=4)
    torch.save(net.state_dict(), path)  # w = model.conv1.weight; model.conv1 = nn.Conv2d(4, ...); copy by hand
    assert "conv1.weight" in load_weights(model, "model.pth").adapted
    assert equal(model, net, but=("conv1.weight",))


def test_a_first_layer_of_5x5(path: Path) -> None:
    net, model = ClassNet(), ClassNet(kernel=5)
    torch.save(net.state_dict(), path)  # pretrained.pop("conv1.weight"); load_state_dict(pretrained, strict=False)
    load_weights(model, "model.pth", exclude=["conv1"])
    assert equal(model, net, but=("conv1",))


def test_a_renamed_last_layer(path: Path) -> None:
    class Renamed(ClassNet):
        def __init__(self) -> None:
            super().__init__()
            self.fc_ = self.fc
            del self.fc

    net, model = ClassNet(2), Renamed()
    torch.save(net.state_dict(), path)  # new = OrderedDict(); for k, v in ...: new[k.replace("fc", "fc_")] = v
    load_weights(model, "model.pth", rename={r"^fc\.": "fc_."})
    assert torch.equal(model.fc_.weight, net.fc.weight)


SINGLE: Callable[[nn.Module], nn.Module] = lambda model: model  # noqa: E731  (a name beside its two wrappers)
WRAPPERS = {
    "single": SINGLE,
    "parallel": nn.DataParallel,
    "doubled": lambda model: nn.DataParallel(nn.DataParallel(model)),
}


@pytest.mark.parametrize("saved", WRAPPERS)
@pytest.mark.parametrize("loaded", WRAPPERS)
@pytest.mark.parametrize("whole", [False, True])
def test_single_and_parallel(path: Path, saved: str, loaded: str, whole: bool) -> None:
    net, model = WRAPPERS[saved](ClassNet()), WRAPPERS[loaded](ClassNet())
    torch.save(net if whole else net.state_dict(), path)  # k[7:], or model.module.load_state_dict, or wrap first
    load_weights(model, "model.pth")
    assert equal(model, net)


def test_a_prefix_is_taken_off_a_file_and_put_on(path: Path) -> None:
    net, model = ClassNet(), ClassNet()
    torch.save(nn.DataParallel(net).state_dict(), path)  # OrderedDict((k[7:], v) for k, v in torch.load(path).items())
    assert main(shlex.split("lit-transfer convert model.pth single.pth --strip module")[1:]) == 0
    model.load_state_dict(torch.load("single.pth"))
    assert equal(model, net)
    assert main(shlex.split("lit-transfer convert single.pth parallel.pth --prefix module")[1:]) == 0
    nn.DataParallel(model).load_state_dict(torch.load("parallel.pth"))


def test_efficientnet_with_1852_classes(path: Path) -> None:
    with torch.device("meta"):
        net = torchvision.models.efficientnet_b0(num_classes=1852)
    state = collections.OrderedDict(
        (f"module.{n}", torch.rand(t.shape).to(t.dtype)) for n, t in net.state_dict().items()
    )
    torch.save(state, path)  # load on the CPU, strip `module.`, then replace classifier[1]
    model = torchvision.models.efficientnet_b0(num_classes=3)
    assert load_weights(model, "model.pth").head == ("classifier.1",)
    assert torch.equal(model.features[0][0].weight, state["module.features.0.0.weight"])


@pytest.mark.parametrize("map_location", ["cpu", torch.device("cpu"), {"cuda:1": "cpu"}, lambda storage, _: storage])
def test_the_four_map_locations(path: Path, map_location: object) -> None:
    net, model = ClassNet(), ClassNet()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda _: "cuda:1")
        torch.save(net.state_dict(), path)  # torch.load(path, map_location=...)
    tensors = open_checkpoint("model.pth").read(map_location=map_location)  # type: ignore[arg-type]  # one of the four
    assert torch.equal(tensors["conv1.weight"], net.conv1.weight)
    load_weights(model, "model.pth")  # needs none
    assert equal(model, net)


def test_the_network_as_a_feature_extractor(path: Path) -> None:
    net, model = ClassNet(1000), ClassNet(2)
    torch.save(net.state_dict(), path)
    load_weights(model, "model.pth")
    freeze(model, "backbone")  # for p in model.parameters(): p.requires_grad = False; then a new model.fc
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["fc.weight", "fc.bias"]


def test_features_without_the_last_layer(path: Path) -> None:
    model, images = ClassNet(1000), torch.rand(2, 3, 8, 8)
    features = create_backbone(model)(images)  # nn.Sequential(*list(model.children())[:-1])(images).flatten(1)
    assert torch.equal(model.fc(features), model(images))


def test_frozen_parts(path: Path) -> None:
    model = ClassNet()
    freeze(model, ["conv1", "bn1"])  # for name, p in model.named_parameters(): if name.startswith(...)
    assert frozen_names(model) == ("conv1.weight", "conv1.bias", "bn1.weight", "bn1.bias")
    freeze(model, ["stem", "stage1"])  # for i, child in enumerate(model.children()): if i < 7
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["fc.weight", "fc.bias"]


def test_the_course_files(real: Path) -> None:
    def lenet(classes: int = 2) -> nn.Module:
        model = nn.Module()
        model.features = nn.Sequential(
            nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2, 2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2, 2)
        )
        model.classifier = nn.Sequential(
            nn.Linear(16 * 5 * 5, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes)
        )
        return model

    state = open_checkpoint(real / "ckpts/course/lesson-28_model_state_dict.pkl").state_dict()
    classes = state["classifier.4.bias"].shape[0]
    one, other = lenet(classes), lenet(classes)
    load_weights(one, real / "ckpts/course/lesson-28_model.pkl")  # the class LeNet2 of __main__ is lost
    load_weights(other, real / "ckpts/course/lesson-28_model_state_dict.pkl")
    assert equal(one, other)
    assert open_checkpoint(real / "ckpts/course/lesson-28_checkpoint_4_epoch.pkl").root["epoch"] == 4


def test_each_line_of_the_readme_is_one_of_these() -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text()
    rows = text.partition("## From the tutorials")[2].partition("\n## ")[0].splitlines()
    lines = [re.findall("`(.*?)`", row.rpartition(" | ")[2]) for row in rows if row.startswith("| ")][2:]
    source = Path(__file__).read_text()
    assert len(lines) >= 15
    for line in lines:
        assert line
        assert all(code.replace("\\|", "|") in source for code in line), line
