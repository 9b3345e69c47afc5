"""Addresses: downloaded once, checked, and one clear error where there is no network."""

import hashlib
import io
import sys
import threading
import types
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from torch import nn

from lit_transfer.weights import WeightsError, load_weights, open_checkpoint


def _file() -> bytes:
    buffer = io.BytesIO()
    torch.manual_seed(0)
    torch.save(nn.Linear(3, 2).state_dict(), buffer)
    return buffer.getvalue()


DATA = _file()
DIGITS = hashlib.sha256(DATA).hexdigest()[:8]


class _Handler(BaseHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012  (one server, one list)

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if "missing" in self.path:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(DATA) + (10 if "short" in self.path else 0)))
        self.end_headers()
        self.wfile.write(DATA)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    _Handler.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()


def test_a_file_is_downloaded_once_and_kept_where_torch_keeps_it(server: str, tmp_path: Path) -> None:
    for _ in range(2):
        report = load_weights(nn.Linear(3, 2), f"{server}/net-{DIGITS}.pth?download=1")
    assert report.source.startswith("http://")
    assert len(_Handler.asked) == 1
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [f"net-{DIGITS}.pth"]


def test_equal_names_at_two_addresses_are_two_files(server: str, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        open_checkpoint(f"{server}/{folder}/model.pth")
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("net-00000000.pth", "its name promises 00000000"),
        ("short.pth", r"gave [\d,]+ of [\d,]+ bytes|cannot be downloaded"),
        ("missing.pth", r"404.*give its path, or put it at .*missing\.pth"),
        ("", "does not end in a file name"),
    ],
)
def test_what_is_not_the_file_leaves_nothing(server: str, tmp_path: Path, name: str, error: str) -> None:
    with pytest.raises(WeightsError, match=error):
        open_checkpoint(f"{server}/{name}")
    assert not list((tmp_path / "checkpoints").glob("*"))
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_without_a_network_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    with pytest.raises(WeightsError, match=r"http://127\.0\.0\.1:9/x\.pth cannot be downloaded.*put it at"):
        open_checkpoint("http://127.0.0.1:9/x.pth")


def _hub(folder: Path, files: list[str]) -> types.ModuleType:
    """The three functions of huggingface_hub that are used, over a folder."""
    hub = types.ModuleType("huggingface_hub")
    functions = {
        "list_repo_files": lambda repository, revision: files,
        "hf_hub_download": lambda repository, file, revision: str(folder / file),
        "snapshot_download": lambda repository, revision, allow_patterns: str(folder),
    }
    vars(hub).update(functions)
    return hub


def test_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(DATA)
    monkeypatch.setitem(sys.modules, "huggingface_hub", _hub(tmp_path, ["README.md", "pytorch_model.bin"]))
    assert load_weights(nn.Linear(3, 2), "hf://org/repo").coverage == 1
    assert load_weights(nn.Linear(3, 2), "hf://org/repo@main/pytorch_model.bin").coverage == 1
    monkeypatch.setitem(sys.modules, "huggingface_hub", _hub(tmp_path, ["weights/a.pth"]))
    with pytest.raises(WeightsError, match=r"add one: weights/a\.pth"):
        open_checkpoint("hf://org/repo")
    with pytest.raises(WeightsError, match="hf://organisation/repository"):
        open_checkpoint("hf://org")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(WeightsError, match="pip install huggingface_hub"):
        open_checkpoint("hf://org/repo")
