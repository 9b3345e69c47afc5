"""The code of docs/multi_task.md is what runs here: two tasks trained on real digits, and the core with both."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from lit_transfer import load_predictor, param_groups
from lit_transfer.callbacks import FeatureCaching, FinetuningSchedule
from lit_transfer.modules import TransferModule

PAGE = Path(__file__).parents[1] / "docs" / "multi_task.md"
NAME = "multi_task_page"
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]


@pytest.fixture(scope="module")
def code() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture(scope="module")
def page(code: list[str]) -> Iterator[ModuleType]:
    """The page's classes, in a module that a checkpoint can name."""
    module = sys.modules[NAME] = ModuleType(NAME)
    exec(compile(code[0], str(PAGE), "exec"), module.__dict__)
    yield module
    del sys.modules[NAME]


def test_it_takes_less_than_sixty_lines(code: list[str]) -> None:
    assert sum(bool(line.strip()) for block in code for line in block.splitlines()) < 60


def test_both_tasks_are_learned_saved_and_predicted(
    code: list[str], page: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(compile(code[1], str(PAGE), "exec"), page.__dict__)
    trainer, module = page.trainer, page.module
    logged = trainer.validate(module, trainer.datamodule, verbose=False)[0]
    assert set(logged) == {"val_loss", "val_loss_digit", "val_loss_even", "val_digit_acc", "val_even_acc"}
    assert logged["val_digit_acc"] > 0.8
    assert logged["val_even_acc"] > 0.8
    assert logged["val_loss"] == pytest.approx(logged["val_loss_digit"] + 0.5 * logged["val_loss_even"], rel=1e-5)
    trainer.save_checkpoint("saved.ckpt")
    assert type(TransferModule.load_from_checkpoint("saved.ckpt", weights_only=True)) is page.DigitAndParity
    images, target = next(iter(trainer.datamodule.val_dataloader()))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (module.preprocessing.mean, module.preprocessing.std))
    answers = load_predictor("saved.ckpt", device="cpu")((images * std + mean).clamp(0, 1))
    assert sum(a["digit"] == t for a, t in zip(answers, target.tolist(), strict=True)) > 0.7 * len(target)


def small(page: ModuleType, **arguments: Any) -> Any:
    torch.manual_seed(0)
    return page.DigitAndParity("shufflenet_v2_x0_5", weights=None, input_size=32, **arguments)


def fitted(page: ModuleType, module: Any, *callbacks: Any) -> Any:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=2, accelerator="cpu", enable_model_summary=False, callbacks=list(callbacks), **quiet)
    trainer.fit(module, page.DigitsWithParity(per_class=8, batch_size=16, augment="none"))
    return module


def test_the_core_with_both_tasks(page: ModuleType, tmp_path: Path) -> None:
    """Bit for bit with cached features: batches of 16, float32, one thread, CPU."""
    plain = fitted(page, small(page), FinetuningSchedule("linear_probe"))
    caching = FeatureCaching(fast=False, folder=tmp_path)
    cached = fitted(page, small(page), FinetuningSchedule("linear_probe"), caching)
    assert all(torch.equal(value, cached.state_dict()[name]) for name, value in plain.state_dict().items())
    groups = param_groups(plain, 1e-3, head_lr=1e-2, stages=plain.stages)
    names = [name for group in groups if group["stage"] == "head" for name, _ in group["params"]]
    assert sorted(names) == sorted(f"head.{name}" for name, _ in plain.head.named_parameters())


def test_one_head_may_train_alone(page: ModuleType) -> None:
    module = fitted(page, small(page), FinetuningSchedule([{"train": ["head.even"]}]))
    assert (module.head["digit"].weight == 0).all()  # as it began
    assert (module.head["even"][-1].weight != 0).any()
