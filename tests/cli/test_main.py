import re
import subprocess
import sys


def test_help_shows_every_command(run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    training, files = (
        ["fit", "validate", "test", "predict", "schedule", "probe"],
        ["inspect", "match", "convert", "diff"],
    )
    for command in [*training, *files, "cache", "backbones", "demo"]:
        assert re.search(rf"^ +{command}\b", out, re.MULTILINE)


def test_no_command_shows_the_help(run) -> None:
    assert run()[1] == run("--help")[1]


def test_a_wrong_command_gets_the_nearest_in_one_line(run) -> None:
    code, _, err = run("fti")
    assert code == 2
    assert err.count("\n") == 1
    assert "Nearest: fit" in err


def test_help_imports_no_torch() -> None:
    code = (
        "import sys; from lit_transfer.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
