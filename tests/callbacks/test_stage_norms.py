"""What StageNorms logs is what the optimizer got and did: accumulated, unscaled, unclipped, whole in each process."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from foreign_module import Batches, Foreign, batch, trainer, val_loader
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision

from lit_transfer import param_groups
from lit_transfer.callbacks import FinetuningSchedule, StageNorms

STAGES = ["stem", "stage1", "stage2", "head"]


class Plain(Foreign):
    """Without dropout and momentum, so that an update is the rate times the gradient."""

    def __init__(self, lr: float = 0.05, **options: Any) -> None:
        super().__init__(dropout=0.0)
        self.lr, self.options = lr, options

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(param_groups(self, self.lr, 0.0), **self.options)


def gradients(module: Foreign, *numbers: int) -> dict[str, float]:
    """The gradients of the mean loss of batches, by stage, from a plain loop in train mode."""
    module.train()
    for number in numbers:
        (module.training_step(batch(number), 0) / len(numbers)).backward()
    parts = dict(zip(STAGES, [*module.encoder, module.classifier], strict=True))
    return {
        name: torch.cat([p.grad.flatten() for p in part.parameters()]).norm().item() for name, part in parts.items()
    }


def weights(module: Foreign) -> dict[str, float]:
    parts = dict(zip(STAGES, [*module.encoder, module.classifier], strict=True))
    return {
        name: torch.cat([p.detach().flatten() for p in part.parameters()]).norm().item() for name, part in parts.items()
    }


def measured(module: Foreign, *, every: int = 1, **options: Any) -> StageNorms:
    norms = StageNorms(every)
    trainer(norms, max_epochs=1, **options).fit(module, Batches(), val_loader())
    return norms


def test_columns_of_the_log_and_a_picture(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    norms = measured(Plain(), every=3, logger=logger, log_every_n_steps=1)
    expected, start = gradients(Plain(), 0), weights(Plain())
    with Path(logger.log_dir, "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["grad_norm/stem"]]
    assert [int(row["step"]) for row in rows] == [0, 3] == list(norms.measured)
    for name in STAGES:
        assert float(rows[0][f"grad_norm/{name}"]) == pytest.approx(expected[name], rel=1e-4)
        assert float(rows[0][f"weight_norm/{name}"]) == pytest.approx(start[name], rel=1e-4)
        ratio = 0.05 * expected[name] / start[name]
        assert float(rows[0][f"update_ratio/{name}"]) == pytest.approx(ratio, rel=1e-4)
    assert Path(logger.log_dir, "norms.png").read_bytes().startswith(b"\x89PNG")


def test_accumulated_gradients_are_whole_and_a_window_is_one_step() -> None:
    norms = measured(Plain(), accumulate_grad_batches=2)
    expected = gradients(Plain(), 0, 1)
    assert list(norms.measured) == [0, 1]
    assert {name: norm.gradient for name, norm in norms.measured[0].items()} == pytest.approx(expected, rel=1e-4)


def test_gradients_are_those_before_clipping_and_updates_those_after() -> None:
    norms = measured(Plain(), gradient_clip_val=0.01).measured[0]
    expected, start = gradients(Plain(), 0), weights(Plain())
    whole = sum(value**2 for value in expected.values()) ** 0.5
    assert whole > 0.1
    for name in STAGES:
        assert norms[name].gradient == pytest.approx(expected[name], rel=1e-4)
        assert norms[name].update == pytest.approx(0.05 * expected[name] * 0.01 / whole / start[name], rel=1e-2)


@pytest.mark.parametrize("fused", [False, True])
def test_amp_scales_nothing_of_it(fused: bool) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    norms = measured(Plain(fused=fused), plugins=[plugin]).measured[0]
    expected = gradients(Plain(), 0)
    assert {name: norm.gradient for name, norm in norms.items()} == pytest.approx(expected, rel=2e-2)


def test_a_step_that_amp_skips_has_no_update() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1e30)
    norms = measured(Plain(), plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)]).measured[0]
    assert {norm.update for norm in norms.values()} == {0.0}


def test_frozen_stages_are_absent_until_they_train(tmp_path: Path) -> None:
    phases: list[Any] = [{"train": "head"}, {"at": {"step": 2}, "train": ["head", "stage2"]}]
    norms, logger = StageNorms(1), CSVLogger(tmp_path)
    made = trainer(FinetuningSchedule(phases), norms, max_epochs=1, logger=logger, log_every_n_steps=1)
    made.fit(Plain(), Batches(), val_loader())
    assert [list(found) for found in norms.measured.values()] == [["head"]] * 2 + [["stage2", "head"]] * 2
    with Path(logger.log_dir, "metrics.csv").open() as file:
        assert not any("stem" in name for name in next(csv.reader(file)))


def test_training_is_bitwise_as_without() -> None:
    modules = [Plain(), Plain()]
    for module, callbacks in zip(modules, ([StageNorms(1)], []), strict=True):
        trainer(*callbacks, max_epochs=1).fit(module, Batches(), val_loader())
    assert all(torch.equal(a, b) for a, b in zip(*(m.state_dict().values() for m in modules), strict=True))


def test_a_resumed_run_measures_the_same_steps(tmp_path: Path) -> None:
    whole, first, second = StageNorms(3), StageNorms(3), StageNorms(3)
    for norms, epochs, path in ((whole, 2, None), (first, 1, None), (second, 2, tmp_path / "1.ckpt")):
        made = trainer(norms, max_epochs=epochs)
        made.fit(Plain(), Batches(), val_loader(), ckpt_path=path, weights_only=True)
        made.save_checkpoint(tmp_path / f"{epochs}.ckpt")
    assert list(whole.measured) == [0, 3, 6]
    assert first.measured | second.measured == whole.measured


class Manual(Plain):
    """Two optimizers that step in turn within a batch."""

    automatic_optimization = False

    def configure_optimizers(self) -> Any:
        parts = (self.encoder, self.classifier)
        return [torch.optim.SGD(part.parameters(), self.lr) for part in parts]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()


def test_several_optimizers_are_measured_in_the_same_batch() -> None:
    norms = measured(Manual(), every=4)
    assert list(norms.measured) == [0, 4]
    assert all(list(found) == STAGES for found in norms.measured.values())


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="every_n_steps must be a whole number of at least 1, got 0"):
        StageNorms(0)
    with pytest.raises(TypeError, match="one device and with strategy='ddp'; got SimpleNamespace"):
        StageNorms().setup(SimpleNamespace(strategy=SimpleNamespace()), Plain(), "fit")  # type: ignore[arg-type]


def ddp() -> None:
    """Fit in two processes with halves of each batch; print what rank 0 measured."""
    torch.set_num_threads(1)
    norms = StageNorms(1)
    made = trainer(norms, accelerator="cpu", strategy="ddp", devices=2, max_epochs=1, num_sanity_val_steps=0)
    rank = made.global_rank

    class Halves(Batches):
        def __iter__(self) -> Any:
            return ((images[rank::2], labels[rank::2]) for images, labels in map(batch, range(self.count)))

    model = Plain()
    model.encoder.apply(_fixed)
    made.fit(model, Halves())
    if rank == 0:
        print("ANSWER", json.dumps({name: norm.gradient for name, norm in norms.measured[3].items()}))
    assert bool(norms.measured) == (rank == 0)


def _fixed(part: torch.nn.Module) -> None:
    if isinstance(part, torch.nn.BatchNorm2d):  # else each process normalises by its own half
        part.train = lambda mode=True: part  # type: ignore[method-assign]
        part.training = False


@pytest.mark.xdist_group("ddp")
def test_two_processes_measure_what_one_does() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, __file__], capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    assert lines, done.stderr[-3000:]
    model = Plain()
    model.encoder.apply(_fixed)
    norms = StageNorms(1)
    with pytest.warns(UserWarning, match="in eval mode"):
        trainer(norms, max_epochs=1).fit(model, Batches(), val_loader())
    expected = {name: norm.gradient for name, norm in norms.measured[3].items()}
    assert json.loads(lines[-1].removeprefix("ANSWER ")) == pytest.approx(expected, rel=1e-4)


if __name__ == "__main__":
    ddp()
