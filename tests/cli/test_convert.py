import json
import re
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lit_transfer.lora import add_lora
from lit_transfer.modules import ImageClassifier, TransferModule
from lit_transfer.weights import WeightsError, open_checkpoint


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def saved(path: str) -> dict[str, Tensor]:
    state: dict[str, Tensor] = load_file(path) if path.endswith(".safetensors") else torch.load(path, weights_only=True)
    return state


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_training_checkpoint_is_slimmed_to_its_weights(run, suffix: str) -> None:
    net = network()
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 1, 5, 5)).sum().backward()
    optimizer.step()
    torch.save({"epoch": 3, "state_dict": net.state_dict(), "optimizer": optimizer.state_dict()}, "train.pth")
    code, out, err = run("convert", "train.pth", f"slim.{suffix}")
    assert (code, err) == (0, "")
    assert out.startswith(f"slim.{suffix}: 7 tensors, ")
    assert "'state_dict' of train.pth" in out
    assert equal(saved(f"slim.{suffix}"), net.state_dict())


def test_files_of_a_largest_size_with_an_index(run) -> None:
    net = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 100))
    torch.save({"state_dict": net.state_dict()}, "train.pth")
    code, out, err = run("convert", "train.pth", "slim.safetensors", "--shards", "50kB", "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    shards = sorted(Path().glob("slim-*.safetensors"))
    assert told["path"] == "slim.safetensors.index.json"
    assert (told["files"], told["tensors"], told["bytes"]) == (2, 4, sum(path.stat().st_size for path in shards))
    found = {name: tensor for path in shards for name, tensor in load_file(path).items()}
    assert equal(found, net.state_dict())
    assert open_checkpoint("slim.safetensors.index.json").read().keys() == found.keys()
    code, out, err = run("convert", "train.pth", "slim.safetensors", "--shards", "50kB")
    assert code == 2
    assert "slim.safetensors.index.json is there already: --force replaces it" in err
    code, out, err = run("convert", "slim.safetensors.index.json", "slim.safetensors", "--shards", "50kB", "--force")
    assert code == 2
    assert "OUT is IN" in err
    code, out, err = run("convert", "train.pth", "one.safetensors", "--shards", "1GB")
    assert code == 0
    assert out.startswith("one.safetensors: 4 tensors, ")
    code, out, err = run("convert", "train.pth", "two.pth", "--shards", "many")
    assert (code, out, len(err.splitlines())) == (2, "", 1)


def test_prefixes_in_both_directions_and_doubled(run) -> None:
    net = network()
    for words, wrapped in (
        (["--prefix", "module"], nn.DataParallel(net)),
        (["--prefix", "module.module"], nn.DataParallel(nn.DataParallel(net))),
    ):
        torch.save(net.state_dict(), "single.pth")
        assert run("convert", "single.pth", "parallel.pth", *words, "--force")[0] == 0
        assert equal(saved("parallel.pth"), wrapped.state_dict())
        assert run("convert", "parallel.pth", "back.pth", "--strip", words[1], "--force")[0] == 0
        assert equal(saved("back.pth"), net.state_dict())
        wrapped.load_state_dict(torch.load("parallel.pth"), strict=True)


def test_the_averaged_network_is_taken_and_told(run) -> None:
    net = network()
    averaged = torch.optim.swa_utils.AveragedModel(network())
    torch.save({"model": net, "model_state_dict": net.state_dict(), "ema": averaged.state_dict()}, "f.pth")
    code, out, _ = run("convert", "f.pth", "ema.pth", "--include", "module", "--strip", "module")
    assert code == 0
    assert "'ema' was chosen; the file also has key='model_state_dict', key='model'" in " ".join(out.split())
    assert equal(saved("ema.pth"), averaged.module.state_dict())
    assert run("convert", "f.pth", "plain.pth", "--prefer", "plain")[0] == 0
    assert equal(saved("plain.pth"), net.state_dict())
    assert run("convert", "f.pth", "module.pth", "--key", "model")[0] == 0  # the pickled module
    assert equal(saved("module.pth"), net.state_dict())


def test_dtype_and_parts(run) -> None:
    torch.save(network().state_dict(), "f.pth")
    assert run("convert", "f.pth", "half.safetensors", "--dtype", "bfloat16", "--exclude", "*.running_*")[0] == 0
    half = saved("half.safetensors")
    assert {name: tensor.dtype for name, tensor in half.items() if name.startswith("1.")} == {
        "1.weight": torch.bfloat16,
        "1.bias": torch.bfloat16,
        "1.num_batches_tracked": torch.int64,
    }


def test_our_checkpoint_becomes_what_torchvision_loads(run, own_checkpoint: Path) -> None:
    code, out, err = run("convert", own_checkpoint, "plain.pth", "--to", "upstream")
    assert (code, err) == (0, "")
    assert "as squeezenet1_1" in " ".join(out.split())
    model = torchvision.models.squeezenet1_1(num_classes=3)
    model.load_state_dict(torch.load("plain.pth", weights_only=True), strict=True)
    module = ImageClassifier.load_from_checkpoint(own_checkpoint, weights_only=True)
    assert equal(model.features.state_dict(), module.backbone.features.state_dict())
    assert torch.equal(model.classifier[1].weight.flatten(1), module.head.weight)
    assert "answers differ" in " ".join(out.split())  # SqueezeNet has a ReLU between its classifier and the pooling
    about = open_checkpoint("plain.pth").metadata
    assert json.loads(about["class_names"]) == ["ant", "bee", "wasp"]
    assert json.loads(about["preprocessing"])["crop"] == 32
    assert about["provenance"].startswith("lit-transfer convert: 'state_dict' of")


def test_what_export_wrote_is_read_as_a_checkpoint_is(run, own_checkpoint: Path) -> None:
    module = ImageClassifier.load_from_checkpoint(own_checkpoint, weights_only=True)
    module.save_pretrained("there")
    (written,) = Path("there").glob("*.safetensors")
    code, out, err = run("convert", written, "plain.pth", "--to", "upstream")
    assert (code, err) == (0, "")
    assert "as squeezenet1_1" in " ".join(out.split())
    model = torchvision.models.squeezenet1_1(num_classes=3)
    model.load_state_dict(torch.load("plain.pth", weights_only=True), strict=True)
    assert run("convert", written, "half.safetensors", "--dtype", "float16")[0] == 0
    assert equal(ImageClassifier.load_from_checkpoint("half.safetensors").state_dict(), _halved(module.state_dict()))
    assert run("convert", written, "bare.safetensors", "--include", "backbone", "--strip", "backbone")[0] == 0
    with pytest.raises(WeightsError, match="no checkpoint of a TransferModule"):
        ImageClassifier.load_from_checkpoint("bare.safetensors")


def test_another_architecture_is_refused_in_a_line(run, own_checkpoint: Path) -> None:
    code, out, err = run("convert", own_checkpoint, "plain.pth", "--to", "resnet18")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "does not fill resnet18" in err
    assert not Path("plain.pth").exists()


def test_metadata_of_others_under_our_name_is_left_alone(run) -> None:
    save_file({"a": torch.zeros(2)}, "odd.safetensors", metadata={"lit_transfer": "not JSON"})
    assert run("convert", "odd.safetensors", "plain.pth")[0] == 0


def _halved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.half().to(t.dtype) if t.is_floating_point() else t for name, t in state.items()}


def checkpoint_of(module: ImageClassifier, path: str) -> None:
    """A checkpoint as Lightning writes it, as far as the weights go."""
    with torch.no_grad():
        for parameter in module.head.parameters():
            parameter.normal_()
    content = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    module.on_save_checkpoint(content)
    torch.save(content, path)


def test_one_channel_and_a_dropout_before_the_head(run) -> None:
    module = ImageClassifier("shufflenet_v2_x0_5", weights=None, num_classes=4, in_channels=1, dropout=0.5)
    checkpoint_of(module, "own.ckpt")
    assert run("convert", "own.ckpt", "plain.safetensors", "--to", "upstream")[0] == 0
    model = torchvision.models.shufflenet_v2_x0_5(num_classes=4)
    model.conv1[0] = nn.Conv2d(1, 24, 3, 2, 1, bias=False)
    model.load_state_dict(saved("plain.safetensors"), strict=True)
    images = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), module.eval()(images))


def test_a_backbone_of_timm(run) -> None:
    module = ImageClassifier("timm/resnet10t", weights=None, num_classes=4, input_size=32)
    checkpoint_of(module, "own.ckpt")
    assert "holds a timm/resnet10t" in run("convert", "own.ckpt", "plain.pth", "--to", "torchvision")[2]
    assert run("convert", "own.ckpt", "plain.pth", "--to", "timm")[0] == 0
    model = timm.create_model("resnet10t", num_classes=4)
    model.load_state_dict(torch.load("plain.pth"), strict=True)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), module.eval()(images))


def test_a_head_of_several_layers_has_no_place_upstream(run) -> None:
    module = ImageClassifier("squeezenet1_1", weights=None, num_classes=2, head="mlp", input_size=32)
    checkpoint_of(module, "own.ckpt")
    code, _, err = run("convert", "own.ckpt", "plain.pth", "--to", "upstream")
    assert code == 2
    assert "has 2 layers" in err
    assert run("convert", "own.ckpt", "backbone.pth", "--include", "backbone", "--strip", "backbone")[0] == 0
    assert equal(saved("backbone.pth"), module.backbone.state_dict())


def test_a_file_by_others_becomes_what_torchvision_loads(run) -> None:
    net = torchvision.models.squeezenet1_1(num_classes=7)
    state = {f"model.{name}": tensor.half() for name, tensor in nn.DataParallel(net).state_dict().items()}
    torch.save({"state_dict": state}, "lightning.ckpt")
    code, out, _ = run("convert", "lightning.ckpt", "plain.pth", "--to", "squeezenet1_1", "--json")
    assert code == 0
    assert json.loads(out)["tensors"] == 52
    assert equal(saved("plain.pth"), net.half().state_dict())
    assert run("convert", "lightning.ckpt", "found.pth", "--to", "upstream")[0] == 0
    assert equal(saved("found.pth"), saved("plain.pth"))


def test_old_names_become_those_of_today(run) -> None:
    net = torchvision.models.densenet121(num_classes=3)
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name): t for name, t in net.state_dict().items()}
    assert old.keys() != net.state_dict().keys()
    torch.save(old, "old.pth")
    assert run("convert", "old.pth", "new.pth", "--to", "densenet121")[0] == 0
    assert equal(saved("new.pth"), net.state_dict())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["net.pth", "net.pth"], ["OUT is IN"]),
        (["net.pth", "there.pth"], ["there.pth", "--force"]),
        (["net.pth", "new.h5"], [".safetensors or .pth", "new.h5"]),
        (["net.pth", "nowhere/new.pth"], ["no folder nowhere"]),
        (["net.pth", "new.pth", "--strip", "module"], ["--strip module", "0.weight and 6 more of 7"]),
        (["net.pth", "new.pth", "--key", "ema"], ["ema"]),
        (["net.pth", "new.pth", "--include", "2"], ["--include '2' matches no tensor"]),
        (["net.pth", "new.pth", "--stripe", "module"], ["--stripe", "Nearest: --strip"]),
        (["net.pth", "new.pth", "--dtype", "float8"], ["float8", "float16"]),
        (["net.pth", "new.pth", "--to", "upstream"], ["give --to NAME"]),
        (["net.pth", "new.pth", "--to", "resnet18"], ["does not fill resnet18", "0 of 102 tensors match"]),
        (["net.pth", "new.pth", "--to", "resnet19"], ["resnet19", "resnet18"]),
        (["net.pth", "new.pth", "--to", "resnet18", "--strip", "module"], ["--to", "--strip"]),
        (["grey.pth", "new.pth", "--to", "squeezenet1_1"], ["features.0.weight", "--in-channels"]),
        (["body.pth", "new.pth", "--to", "squeezenet1_1"], ["classifier.1.weight", "not in the file"]),
        (["gone.pth", "new.pth"], ["no checkpoint at gone.pth"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_file(run, words: list[str], told: list[str]) -> None:
    torch.save(network().state_dict(), "net.pth")
    Path("there.pth").write_text("precious")
    squeezenet = torchvision.models.squeezenet1_1(num_classes=2).state_dict()
    torch.save({**squeezenet, "features.0.weight": torch.ones(64, 1, 3, 3)}, "grey.pth")
    torch.save({name: tensor for name, tensor in squeezenet.items() if "classifier" not in name}, "body.pth")
    before = {path.name: path.read_bytes() for path in Path().iterdir()}
    code, out, err = run("convert", *words)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert all(word in err for word in told), err
    assert {path.name: path.read_bytes() for path in Path().iterdir()} == before


def test_adapters_are_merged_first(run, own_checkpoint: Path, tmp_path: Path) -> None:
    module = TransferModule.load_from_checkpoint(own_checkpoint)
    add_lora(module, r=2)
    torch.save({"state_dict": module.state_dict()}, tmp_path / "adapted.ckpt")
    code, _, err = run("convert", tmp_path / "adapted.ckpt", "out.pth", "--to", "squeezenet1_1")
    assert code == 2
    assert "Merge them first: merge_lora(module)" in err
