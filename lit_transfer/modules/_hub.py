"""Modules on huggingface's hub, by its mixin; huggingface_hub is imported where it is used.

The mixin is not a base class of the modules: importing them would then need huggingface_hub. A module is put on the hub
as two files: `model.safetensors`, which holds all that it takes to build it again, and `config.json`, the same to read.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lit_transfer.modules._portable import about, about_as_text
from lit_transfer.weights import save_weights

if TYPE_CHECKING:
    from lit_transfer.modules.transfer_module import TransferModule

M = TypeVar("M", bound="TransferModule")
_WEIGHTS = "model.safetensors"
_CARD = """---
{{ card_data }}
---

{{ summary }}

```python
from lit_transfer.modules import {{ name }}

module = {{ name }}.from_pretrained("{{ repo }}")
```
"""


def save_pretrained(module: "TransferModule", /, folder: str | Path, **options: Any) -> None:
    """Write the module into a folder, as huggingface's hub keeps it: weights, configuration, and a card.

    Names, preprocessing and thresholds are part of it; `from_pretrained(folder)` needs no network.

    Args:
        module: The module; this is its method.
        folder: Made where it is missing.
        options: Of huggingface_hub's `ModelHubMixin.save_pretrained`.

    Raises:
        ImportError: If huggingface_hub is not installed.
    """
    _on_hub()(module, Path(folder).name).save_pretrained(folder, **options)


def push_to_hub(module: "TransferModule", /, repo_id: str, **options: Any) -> str:
    """Upload the module to huggingface's hub.

    Args:
        module: The module; this is its method.
        repo_id: Such as "me/ants"; made where it is missing.
        options: Of huggingface_hub's `ModelHubMixin.push_to_hub`: `private`, `token`, `commit_message`, ...

    Returns:
        The address of the commit.

    Raises:
        ImportError: If huggingface_hub is not installed.
    """
    address: str = _on_hub()(module, repo_id).push_to_hub(repo_id, **options)
    return address


def load_pretrained(cls: type[M], name: str | Path, **options: Any) -> M:
    """Do what `TransferModule.from_pretrained` says."""
    if Path(name).is_dir() and not (Path(name) / _WEIGHTS).is_file():
        raise FileNotFoundError(f"{name} holds no {_WEIGHTS}: from_pretrained reads what save_pretrained wrote.")
    if not Path(name).is_dir() and _is_path(str(name)):
        raise FileNotFoundError(f"No folder at {str(name)!r}; a name on the hub has the form 'me/ants'.")
    found: M = _on_hub().from_pretrained(name, module_class=cls, **options).module
    return found


def _is_path(name: str) -> bool:
    return name.startswith((".", os.sep, "~")) or name.count("/") > 1


def _on_hub() -> Any:
    """Make the class that has huggingface's mixin and holds a module."""
    try:
        from huggingface_hub import ModelHubMixin, hf_hub_download
    except ImportError as error:
        raise ImportError("The hub needs huggingface_hub: pip install 'lit-transfer[hub]'.") from error

    class OnHub(ModelHubMixin, library_name="lit-transfer", tags=["lightning"], model_card_template=_CARD):
        def __init__(self, module: "TransferModule", repo: str) -> None:
            self.module, self.repo = module, repo

        def _save_pretrained(self, save_directory: Path) -> None:
            save_weights(self.module, save_directory / _WEIGHTS, metadata=about_as_text(self.module))
            text = json.dumps(about(self.module), indent=2, sort_keys=True)
            (save_directory / "config.json").write_text(text, encoding="utf-8")

        @classmethod
        def _from_pretrained(  # type: ignore[override]  # the mixin's own options differ from release to release
            cls, *, model_id: str, module_class: type[M], **options: Any
        ) -> "OnHub":
            names = ("revision", "cache_dir", "force_download", "local_files_only", "token")
            download = {name: options.pop(name) for name in names}
            for name in ("proxies", "resume_download"):  # the mixin of huggingface_hub before 1.0 passes them
                options.pop(name, None)
            folder = Path(model_id)
            file = folder / _WEIGHTS if folder.is_dir() else hf_hub_download(model_id, _WEIGHTS, **download)
            return cls(module_class.load_from_checkpoint(str(file), **options).eval(), model_id)

        def generate_model_card(self, *args: Any, **kwargs: Any) -> Any:
            told = {"name": _public_class(self.module), "summary": _summary(self.module), "repo": self.repo}
            return super().generate_model_card(*args, **told, **kwargs)

    return OnHub


def _public_class(module: "TransferModule") -> str:
    """Name the class of `lit_transfer.modules` that a reader imports; the base finds a user's own."""
    own = type(module).__module__.startswith("lit_transfer.modules.")
    return type(module).__name__ if own else "TransferModule"


def _summary(module: "TransferModule") -> str:
    names = getattr(module, "output_names", None)
    told = f" for {', '.join(names)}" if names else ""
    size = module.preprocessing.crop
    return f"`{type(module).__name__}` on `{module.backbone.name}`{told}; images of {size}x{size} pixels."
