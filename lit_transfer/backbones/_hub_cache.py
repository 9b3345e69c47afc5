"""Which backbones of transformers lie in the hub's cache: all that can be listed without a network."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lit_transfer.backbones import _transformers

__all__ = ["cached_names", "folder_of", "has_weights", "nothing_cached"]

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*")


def cached_names(pattern: str = "hf/*") -> list[str]:
    """Names `hf/ORG/NAME` of the image models in the hub's cache that match a shell pattern.

    An image model is one of a type that transformers classifies images with or has a backbone of; a text model that
    lies there too is left out.

    Raises:
        ImportError: transformers is not installed.
    """
    types = _transformers.image_model_types()
    folders = sorted(_cache().glob("models--*--*"))
    names = ["hf/" + folder.name.removeprefix("models--").replace("--", "/") for folder in folders]
    return [name for name in names if fnmatchcase(name, pattern) and _model_type(name) in types]


def folder_of(name: str) -> Path | None:
    """Where the files of `hf/ORG/NAME` lie in the cache; None if they do not."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name.removeprefix("hf/"), "config.json")
    return Path(found).parent if isinstance(found, str) else None


def has_weights(folder: Path) -> bool:
    """Whether a folder of the cache holds weights, and not only what a model is."""
    return any(next(folder.glob(pattern), None) for pattern in _WEIGHTS)


def nothing_cached(pattern: str) -> str:
    """Say why a pattern matches nothing, and how a name is found that works all the same."""
    return (
        f"{pattern!r} matches nothing in the hub's cache ({_cache()}), which is all of hf/... that can be listed. Find "
        "a name at https://huggingface.co/models?library=transformers&pipeline_tag=image-classification and give it as "
        "hf/ORG/NAME, or a folder of save_pretrained as hf/./FOLDER."
    )


def _cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _model_type(name: str) -> str | None:
    folder = folder_of(name)
    if folder is None:
        return None
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a download that broke off
        return None
    return config.get("model_type")
