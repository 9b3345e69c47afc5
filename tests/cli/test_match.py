import json
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

SMALL = "squeezenet1_1"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a network with five classes, saved under DataParallel."""
    path = tmp_path_factory.mktemp("match") / "model.pth"
    torch.save(nn.DataParallel(torchvision.models.squeezenet1_1(num_classes=5)).state_dict(), path)
    return path


def words(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_the_backbone_is_found_and_the_verdict_told(run, file: Path) -> None:
    code, out, err = run("match", file)
    assert (code, err) == (0, "")
    lines = words(out)
    assert f"into {SMALL}, 52 tensors" in lines
    assert "names `module.` removed" in lines
    assert "loaded 50 tensors, coverage 100.0%" in lines
    assert "verdict complete: it would be loaded" in lines
    assert any(
        line.startswith("classifier.1.bias 1000 fresh module.classifier.1.bias head, 5 in the file") for line in lines
    )
    assert not any("features.0.weight" in line for line in lines)
    assert max(map(len, out.splitlines())) <= 100


def test_with_the_files_classes_all_is_loaded(run, file: Path) -> None:
    lines = words(run("match", file, "--backbone", SMALL, "--num-classes", 5, "--all")[1])
    assert "loaded 52 tensors, coverage 100.0%" in lines
    assert "features.0.weight 64x3x3x3 load module.features.0.weight" in lines


def test_channels_are_adapted_or_refused(run, file: Path) -> None:
    code, out, _ = run("match", file, "--backbone", SMALL, "--in-channels", 1)
    assert code == 0
    assert "features.0.weight 64x1x3x3 adapt module.features.0.weight 3 input" in " ".join(words(out))
    code, out, _ = run("match", file, "--backbone", SMALL, "--in-channels", 1, "--on-mismatch", "error")
    assert code == 1
    assert "--on-mismatch 'skip'" in out
    code, out, _ = run("match", file, "--backbone", SMALL, "--in-channels", 1, "--exclude", "features.0.weight")
    assert code == 0
    assert "features.0.weight 64x1x3x3 keep excluded" in words(out)


def test_what_does_not_fit_is_refused_with_the_option_that_accepts_it(run) -> None:
    state = torchvision.models.squeezenet1_1().state_dict()
    torch.save({name: tensor for name, tensor in state.items() if "features.12" not in name}, "part.pth")
    code, out, err = run("match", "part.pth", "--backbone", SMALL)
    assert (code, err) == (1, "")
    assert "verdict refused: nothing would be loaded" in words(out)
    assert "features.12.squeeze.weight 64x512x1x1 missing" in words(out)
    assert "--min-coverage 0.88 accepts that" in " ".join(words(out))
    assert run("match", "part.pth", "--backbone", SMALL, "--min-coverage", 0.88)[0] == 0
    code, out, _ = run("match", "part.pth", "--backbone", "resnet18")
    assert code == 1
    assert "the file looks like a SqueezeNet" in " ".join(words(out))
    assert "more; --all lists them" in out


def test_json_is_the_plan(run, file: Path) -> None:
    code, out, _ = run("match", file, "--json")
    plan = json.loads(out)
    assert code == 0
    assert (plan["backbone"], plan["complete"], plan["prefix"]) == (SMALL, True, "module")
    assert plan["entries"][0]["action"] == "load"


def test_our_own_checkpoint_tells_its_backbone_and_timm_is_one_too(run, own_checkpoint: Path) -> None:
    code, out, _ = run("match", own_checkpoint)
    assert code == 0
    assert "names `backbone.` removed" in words(out)
    code, out, _ = run("match", own_checkpoint, "--backbone", "timm/resnet10t")
    assert code == 1
    assert "into     timm/resnet10t, " in out


def test_which_of_several(run) -> None:
    net, other = (torchvision.models.squeezenet1_1(num_classes=2) for _ in range(2))
    torch.save({"model": net, "state_dict": net.state_dict(), "ema": other.state_dict()}, "ema.pth")
    assert "key 'ema'" in run("match", "ema.pth")[1]
    assert "key 'state_dict'" in run("match", "ema.pth", "--prefer", "plain")[1]
    torch.save({"left": net.state_dict(), "right": other.state_dict()}, "twins.pth")
    code, _, err = run("match", "twins.pth", "--backbone", SMALL)
    assert code == 2
    assert "choose with --key 'left' or --key 'right'" in err
    assert run("match", "twins.pth", "--key", "right")[0] == 0


def test_renamed_and_in_order(run) -> None:
    state = torchvision.models.squeezenet1_1().state_dict()
    torch.save({name.replace("features", "trunk_of"): tensor for name, tensor in state.items()}, "renamed.pth")
    assert run("match", "renamed.pth", "--backbone", SMALL, "--rename", r"^trunk_of\.", "features.")[0] == 0
    torch.save(
        {f"p{i}.{name.rpartition('.')[2]}": tensor for i, (name, tensor) in enumerate(state.items())}, "numbered.pth"
    )
    assert run("match", "numbered.pth", "--backbone", SMALL)[0] == 1
    assert run("match", "numbered.pth", "--backbone", SMALL, "--match", "order")[0] == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--backbone", "squeezenet1_2"], ["squeezenet1_2", "squeezenet1_1"]),
        (["--exclude", "feature.0"], ["--exclude 'feature.0'", "features.0.weight"]),
        (["--key", "ema"], ["ema"]),
        (["--prefer", "mean"], ["mean", "'ema'", "'plain'"]),
        (["--num-classes", "many"], ["many"]),
        (["--min-coverage", "2"], ["0 to 1"]),
    ],
)
def test_a_wrong_question_is_one_line(run, file: Path, options: list[str], told: list[str]) -> None:
    code, out, err = run("match", file, *options)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert all(word in err for word in told), err


def test_a_file_that_tells_of_no_backbone(run) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), "linear.pth")
    code, _, err = run("match", "linear.pth")
    assert code == 2
    assert "give --backbone NAME" in err


def test_a_folder_of_transformers_is_a_backbone_too(run, tmp_path: Path) -> None:
    from transformers import AutoModelForImageClassification, ViTConfig

    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    model = AutoModelForImageClassification.from_config(ViTConfig(**small, image_size=32, patch_size=8, num_labels=5))
    model.config.save_pretrained(tmp_path / "vit")
    torch.save({f"module.{name}": value for name, value in model.state_dict().items()}, tmp_path / "best.pth")
    question = ("match", tmp_path / "best.pth", "--backbone", f"hf/{tmp_path / 'vit'}")
    code, out, err = run(*question)
    assert (code, err) == (0, "")
    assert f"into hf/{tmp_path / 'vit'}, {len(model.state_dict())} tensors" in " ".join(words(out))
    assert "verdict complete: it would be loaded" in words(out)
    assert "classifier.weight 3x16 fresh" in " ".join(words(run(*question, "--num-classes", 3)[1]))
    code, out, _ = run(*question, "--in-channels", 1, "--input-size", 64)
    assert code == 0
    assert "16x1x8x8 adapt" in " ".join(words(out))
    code, _, err = run("match", tmp_path / "best.pth", "--backbone", f"hf/{tmp_path / 'none'}")
    assert (code, err.count("\n")) == (2, 1)
