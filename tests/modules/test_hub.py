"""Modules in a folder as huggingface's hub keeps them; no network is used."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from lit_transfer.modules import ImageClassifier, ImageRegressor, MultiLabelClassifier, TransferModule, _hub

TASKS: list[tuple[type[TransferModule], dict[str, Any]]] = [
    (ImageClassifier, {"class_names": ["ants", "bees"], "class_weights": [1.0, 3.0]}),
    (MultiLabelClassifier, {"label_names": ["RBC", "WBC", "Platelets"]}),
    (ImageRegressor, {"target_names": ["age"], "target_mean": [40.0], "target_std": [9.0]}),
]


def made(cls: type[TransferModule], **arguments: Any) -> Any:
    torch.manual_seed(0)
    module = cls("squeezenet1_1", weights=None, input_size=32, **arguments)
    torch.nn.init.normal_(module.head.weight)
    if isinstance(module, MultiLabelClassifier):
        module.thresholds.copy_(torch.tensor([0.2, 0.5, 0.7]))
    return module.eval()


@pytest.mark.parametrize(("cls", "names"), TASKS)
def test_there_and_back(cls: type[TransferModule], names: dict[str, Any], tmp_path: Path) -> None:
    module = made(cls, **names)
    module.save_pretrained(tmp_path / "ants")
    assert sorted(path.name for path in (tmp_path / "ants").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    for base in (cls, TransferModule):
        again = base.from_pretrained(tmp_path / "ants")
        assert type(again) is cls
        assert not again.training
        assert again.output_names == module.output_names
        assert again.preprocessing == module.preprocessing
        assert again.state_dict().keys() == module.state_dict().keys()
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in module.state_dict().items())
    images = torch.rand(2, 3, 32, 32)
    assert again.describe_answer(again.predict_step(images)[0]) == module.describe_answer(
        module.predict_step(images)[0]
    )
    card = (tmp_path / "ants" / "README.md").read_text()
    assert f'{cls.__name__}.from_pretrained("ants")' in card
    assert "library_name: lit-transfer" in card
    config = json.loads((tmp_path / "ants" / "config.json").read_text())
    assert config["hyper_parameters"]["backbone"] == "squeezenet1_1"


class Own(ImageClassifier):
    """A user's own class, whose backbone is fixed."""

    def __init__(self, width: int = 3) -> None:
        super().__init__(torch.nn.Sequential(torch.nn.Conv2d(3, width, 3), torch.nn.ReLU()), num_classes=2)


def test_a_class_of_ones_own_and_a_backbone_given_as_a_module(backbone: torch.nn.Module, tmp_path: Path) -> None:
    module = Own(width=5)
    module.save_pretrained(tmp_path / "own")
    again = Own.from_pretrained(tmp_path / "own")
    assert torch.equal(again.backbone.state_dict()["0.weight"], module.backbone.state_dict()["0.weight"])
    assert 'TransferModule.from_pretrained("own")' in (tmp_path / "own" / "README.md").read_text()
    given = ImageClassifier(backbone, num_classes=3)
    given.save_pretrained(tmp_path / "given")
    again = ImageClassifier.from_pretrained(tmp_path / "given", backbone=backbone)
    assert again.num_classes == 3


def test_upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent is what save_pretrained writes; the hub itself is not asked."""
    sent: dict[str, Any] = {}

    class Api:
        def __init__(self, token: str | None = None) -> None:
            sent["token"] = token

        def create_repo(self, repo_id: str, **options: Any) -> Any:
            sent["private"] = options["private"]
            return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

        def upload_folder(self, *, repo_id: str, folder_path: Path, **_: Any) -> str:
            sent["module"] = ImageClassifier.from_pretrained(folder_path)
            sent["card"] = (Path(folder_path) / "README.md").read_text()
            return f"https://huggingface.co/{repo_id}/commit/1"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    module = made(ImageClassifier, class_names=["ants", "bees"])
    address = module.push_to_hub("me/ants", private=True, token="t")
    assert address == "https://huggingface.co/me/ants/commit/1"
    assert (sent["token"], sent["private"]) == ("t", True)
    assert sent["module"].class_names == ["ants", "bees"]
    assert 'ImageClassifier.from_pretrained("me/ants")' in sent["card"]


def test_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(ImageClassifier, class_names=["ants", "bees"]).save_pretrained(tmp_path / "there")
    asked: dict[str, Any] = {}

    def download(repo_id: str, filename: str, **options: Any) -> str:
        asked.update(options, repo=repo_id)
        return str(tmp_path / "there" / filename)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", download)
    module = ImageClassifier.from_pretrained("me/ants", revision="v2", local_files_only=True)
    assert module.class_names == ["ants", "bees"]
    assert (asked["repo"], asked["revision"], asked["local_files_only"]) == ("me/ants", "v2", True)


def test_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    with pytest.raises(FileNotFoundError, match=r"No folder at './nowhere'.*'me/ants'"):
        ImageClassifier.from_pretrained("./nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors"):
        ImageClassifier.from_pretrained(tmp_path)
    save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="no checkpoint of a TransferModule"):
        ImageClassifier.from_pretrained(tmp_path)
    made(ImageRegressor, num_targets=1).save_pretrained(tmp_path / "number")
    with pytest.raises(TypeError, match="which is no ImageClassifier"):
        ImageClassifier.from_pretrained(tmp_path / "number")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'lit-transfer\[hub\]'"):
        made(ImageClassifier, num_classes=2).save_pretrained(tmp_path / "new")


def test_importing_the_modules_does_not_need_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "save_pretrained" in runpy.run_path(_hub.__file__)
