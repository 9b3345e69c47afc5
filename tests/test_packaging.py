"""The wheel holds the callbacks under lit_transfer.callbacks, and nothing at the top level but lit_transfer."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    subprocess.run(["git", "-c", "core.symlinks=true", "clone", "-q", str(ROOT), str(source)], check=True)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "-w", str(folder), str(source)], check=True)
    return zipfile.ZipFile(next(folder.glob("*.whl"))).namelist()


def test_every_module_of_the_checkout_is_in_the_wheel(wheel: list[str]) -> None:
    tracked = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "lit_transfer/*.py", "callbacks/*.py"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    expected = {path if path.startswith("lit_transfer/") else f"lit_transfer/{path}" for path in tracked}
    assert {name for name in wheel if name.endswith(".py")} == expected
    assert "lit_transfer/py.typed" in wheel


def test_nothing_else_is_at_the_top_level(wheel: list[str]) -> None:
    assert {name.split("/")[0].partition("-")[0] for name in wheel} == {"lit_transfer"}


def test_callbacks_are_imported_under_one_name() -> None:
    code = "from lit_transfer.callbacks import FinetuningSchedule as c; assert c.__module__.startswith('lit_transfer.')"
    subprocess.run([sys.executable, "-c", code], check=True)
