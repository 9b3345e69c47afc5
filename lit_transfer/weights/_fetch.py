"""Checkpoints that are not on this machine yet: http(s) addresses and the Hugging Face hub."""

import hashlib
import importlib
import logging
import os
import re
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlparse

import torch

from lit_transfer.weights._errors import WeightsError

_logger = logging.getLogger(__name__)
_HASH = re.compile(r"-([0-9a-f]{8,64})\.[A-Za-z.]+$")  # torch.hub's convention: name-<first digits of SHA-256>.pth
_CHUNK = 2**20
_SECONDS = 30
_HUB_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)


def is_remote(source: str) -> bool:
    """Whether the source is an address and not a path."""
    return source.startswith(("http://", "https://", "hf://"))


def fetch(source: str) -> Path:
    """The local file of an address; it is downloaded once.

    Raises:
        WeightsError: It cannot be downloaded, or is not the file that its name promises.
    """
    return _fetch_hub(source) if source.startswith("hf://") else _fetch_url(source)


def cache_folder() -> Path:
    """Where downloads are kept: torch.hub's folder, so that torchvision's files are shared."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def _fetch_url(url: str) -> Path:
    name = unquote(urlparse(url).path).rpartition("/")[2]
    if not name or name in (".", "..") or "\\" in name or "\0" in name:
        raise WeightsError(f"{url} does not end in a file name")
    digits = _HASH.search(name)
    # Without a hash in it a name says nothing: two addresses may both end in model.pth.
    kept_as = name if digits else f"{hashlib.sha256(url.encode()).hexdigest()[:12]}_{name}"
    path = cache_folder() / kept_as
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{kept_as[:100]}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as out:
            _logger.info("downloading %s to %s", url, path)
            found = _download(url, out)
        if digits and not found.startswith(digits[1]):
            raise WeightsError(f"{url} gave a file of SHA-256 {found[:8]}..., its name promises {digits[1]}")
        Path(temporary).replace(path)
    except (urllib.error.URLError, OSError, ValueError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(
            f"{url} cannot be downloaded ({error}); download it elsewhere and give its path, or put it at {path}"
        ) from error
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def _download(url: str, out: IO[bytes]) -> str:
    """Write the file and return its SHA-256."""
    digest = hashlib.sha256()
    received = 0
    request = urllib.request.Request(url, headers={"User-Agent": "lit-transfer"})  # some servers refuse Python's own
    with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
        declared = answer.headers.get("Content-Length")
        while chunk := answer.read(_CHUNK):
            out.write(chunk)
            digest.update(chunk)
            received += len(chunk)
    if declared is not None and declared.isdigit() and received != int(declared):
        raise WeightsError(f"{url} gave {received:,} of {int(declared):,} bytes: the connection broke; try again")
    return digest.hexdigest()


def _fetch_hub(source: str) -> Path:
    """`hf://org/repo[@revision][/file]`; without a file, the usual names are looked for."""
    parts = source.removeprefix("hf://").split("/", 2)
    if len(parts) < 2 or not all(parts[:2]):
        raise WeightsError(f"{source!r} is no address of the hub: write hf://organisation/repository or add /file")
    name, _, revision = parts[1].partition("@")
    repository = f"{parts[0]}/{name}"
    hub = _hub(source)
    try:
        file = parts[2] if len(parts) == 3 and parts[2] else _hub_file(hub, repository, revision or None)
        if file.endswith(".index.json"):
            shards = file.partition(".index.json")[0].rpartition(".")
            pattern = [file, f"{shards[0]}-*.{shards[2]}"]
            return Path(hub.snapshot_download(repository, revision=revision or None, allow_patterns=pattern)) / file
        return Path(hub.hf_hub_download(repository, file, revision=revision or None))
    except WeightsError:
        raise
    except Exception as error:  # the hub's client raises many kinds; each means that there is no file
        why = (str(error).splitlines() or [""])[0]
        raise WeightsError(
            f"{source} cannot be downloaded ({type(error).__name__}: {why}); download it elsewhere and give its path"
        ) from error


def _hub(source: str) -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise WeightsError(f"{source} needs huggingface_hub: pip install huggingface_hub, or give a path") from error


def _hub_file(hub: Any, repository: str, revision: str | None) -> str:
    files = set(hub.list_repo_files(repository, revision=revision))
    for name in _HUB_FILES:
        if name in files:
            return name
    some = sorted(name for name in files if name.endswith((".safetensors", ".bin", ".pt", ".pth", ".ckpt")))[:5]
    raise WeightsError(
        f"hf://{repository} has none of the usual files; add one: {', '.join(some) or 'it has no weights'}"
    )
