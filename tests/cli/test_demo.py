from pathlib import Path

import pytest
import torch

from lit_transfer.cli import demo


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that the demo does, in an epoch each; how well it learns is not tested here."""
    monkeypatch.setattr(demo, "SOURCE_EPOCHS", 1)
    monkeypatch.setattr(demo, "TARGET_EPOCHS", 1)


@pytest.mark.usefixtures("short")
def test_tells_and_leaves_everything(run) -> None:
    code, out, err = run("demo", "--seeds", 1)
    assert code == 0, err
    assert "`module.` removed" in out
    for told in ("from scratch", "linear probe", "fine-tuning", "stage3", "learning rate"):
        assert told in out
    folder = Path("lit_transfer_demo")
    assert {path.name for path in folder.iterdir()} == {
        "digits_0_to_4.pth.tar",
        "results.png",
        "confusion.png",
        "finetune.yaml",
    }
    saved = torch.load(folder / "digits_0_to_4.pth.tar", weights_only=True)
    assert set(saved) == {"epoch", "state_dict", "optimizer", "best_acc"}
    assert all(name.startswith("module.") for name in saved["state_dict"])
    code, _, err = run("fit", "--config", folder / "finetune.yaml", "--trainer.fast_dev_run=true")
    assert code == 0, err


def test_bad_numbers_are_one_line(run) -> None:
    code, _, err = run("demo", "--seeds", 0)
    assert code == 2
    assert err == "lit-transfer demo: error: --seeds must be at least 1, got 0.\n"
