"""What of transformers can be listed without a network: the hub's cache, here one made by hand."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from transformers import AutoModelForImageClassification, BertConfig, ViTConfig

from lit_transfer import list_backbones
from lit_transfer.backbones import BackboneInfo, describe_backbones


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def add(cache: Path, name: str, config: Any) -> Path:
    """Put a repository into the cache as huggingface_hub does."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    config.save_pretrained(snapshot)
    return snapshot


SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def test_the_image_models_of_the_cache_are_listed(cache: Path) -> None:
    assert list_backbones("hf/*") == []
    config = ViTConfig(**SMALL, image_size=48, patch_size=8)
    weights = AutoModelForImageClassification.from_config(config)
    weights.save_pretrained(add(cache, "org/vit-small", config))
    wide = add(cache, "somebody/vit", ViTConfig(image_size=48))
    (wide / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 96, "width": 96}}))
    add(cache, "org/text", BertConfig())
    (cache / "models--org--broken" / "snapshots").mkdir(parents=True)
    assert list_backbones("hf/*") == ["hf/org/vit-small", "hf/somebody/vit"]
    assert list_backbones("hf/org/*") == ["hf/org/vit-small"]
    assert describe_backbones("hf/*") == [
        BackboneInfo("hf/org/vit-small", None, 48, ("DEFAULT",)),
        BackboneInfo("hf/somebody/vit", None, 96, ()),
    ]
