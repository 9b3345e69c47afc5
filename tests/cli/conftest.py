"""Run the command line as a person would, in this process."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, TensorDataset

from lit_transfer.cli import main
from lit_transfer.cli._noise import only_warnings
from lit_transfer.modules import ImageClassifier

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `lit-transfer WORDS` in an empty folder and give (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:  # --help
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="session")
def own_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `fit` leaves: a SqueezeNet with three named classes, after one step."""
    path = tmp_path_factory.mktemp("own") / "best.ckpt"
    module = ImageClassifier("squeezenet1_1", weights=None, class_names=["ant", "bee", "wasp"], input_size=32)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for parameter in module.head.parameters():
            parameter.normal_()  # zeros would be equal to many a mistake
    data = DataLoader(TensorDataset(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])), batch_size=2)
    with only_warnings():
        trainer = Trainer(
            max_steps=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, data, data)
    trainer.save_checkpoint(path)
    return path
