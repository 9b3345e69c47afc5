"""Every scheduler, optimizer and trick of the trainer works through three phases, and sees its own rates only."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from foreign_module import Batches, Foreign, trainer, val_loader
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.plugins import MixedPrecision
from torch.optim import SGD, AdamW, Optimizer
from torch.optim import lr_scheduler as S

from lit_transfer import param_groups
from lit_transfer.callbacks import FinetuningSchedule, TrainabilityAudit

PHASES: list[Any] = [
    {"train": "head"},
    {"at": {"epoch": 1}, "train": ["head", "encoder.2"]},
    {"at": {"epoch": 2}, "train": "all"},
]
RATED: list[Any] = [
    {"train": "head", "warmup": 3},
    {"at": {"epoch": 1}, "train": ["head", "encoder.2"], "lr": 0.02},
    {"at": {"epoch": 2}, "train": "all", "layer_decay": 0.5, "warmup": 2},
]


def stepped(scheduler: Any) -> dict[str, Any]:
    return {"scheduler": scheduler, "interval": "step"}


def monitored(scheduler: Any) -> dict[str, Any]:
    return {"scheduler": scheduler, "monitor": "val_loss", "strict": True}


def warmup_cosine(o: Optimizer) -> Any:
    parts = [S.LinearLR(o, 0.1, total_iters=4), S.CosineAnnealingLR(o, 20)]
    return stepped(S.SequentialLR(o, parts, [4]))


SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "StepLR": lambda o: S.StepLR(o, 1, 0.5),
    "MultiStepLR": lambda o: S.MultiStepLR(o, [1, 2], 0.1),
    "ConstantLR": lambda o: S.ConstantLR(o, 0.5, 2),
    "LinearLR": lambda o: stepped(S.LinearLR(o, 0.1, total_iters=6)),
    "ExponentialLR": lambda o: S.ExponentialLR(o, 0.5),
    "PolynomialLR": lambda o: S.PolynomialLR(o, 6),
    "CosineAnnealingLR": lambda o: stepped(S.CosineAnnealingLR(o, 12)),
    "CosineAnnealingWarmRestarts": lambda o: S.CosineAnnealingWarmRestarts(o, 2),
    "LambdaLR": lambda o: S.LambdaLR(o, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda o: S.MultiplicativeLR(o, lambda epoch: 0.9),
    "CyclicLR": lambda o: stepped(S.CyclicLR(o, 0.001, 0.05, step_size_up=4, cycle_momentum=False)),
    "OneCycleLR": lambda o: stepped(S.OneCycleLR(o, [g["lr"] for g in o.param_groups], total_steps=12)),
    "ReduceLROnPlateau": lambda o: monitored(S.ReduceLROnPlateau(o, mode="max", patience=0, factor=0.5, min_lr=1e-4)),
    "SequentialLR": warmup_cosine,
    "ChainedScheduler": lambda o: S.ChainedScheduler([S.ConstantLR(o, 0.1, 2), S.ExponentialLR(o, 0.9)], optimizer=o),
}


class Rates(Callback):
    """The rates between steps."""

    def __init__(self) -> None:
        self.between: list[list[float]] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.between.append([float(group["lr"]) for group in trainer.optimizers[0].param_groups])


class Seen(SGD):
    """Tells the rates with which it steps."""

    seen: list[dict[str, float]]

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        self.__dict__.setdefault("seen", []).append({g["stage"]: g["lr"] for g in self.param_groups})
        return loss


def fit(module: LightningModule, *callbacks: Callback, **options: Any) -> Trainer:
    made = trainer(*callbacks, **options)
    made.fit(module, Batches(), val_loader())
    return made


class Foretold(Foreign):
    """Its metric is the same whatever was learned, so that ReduceLROnPlateau does the same too."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", float(self.current_epoch == 0))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_run_through_phases_as_without_them_and_never_see_the_phases_own_rates(name: str) -> None:
    alone, plain, rated = Rates(), Rates(), Rates()
    fit(Foretold(scheduler=SCHEDULERS[name]), alone)
    fit(Foretold(scheduler=SCHEDULERS[name]), FinetuningSchedule(PHASES), plain)
    made = fit(Foretold(Seen, scheduler=SCHEDULERS[name]), FinetuningSchedule(RATED), rated)
    assert len({tuple(rates) for rates in alone.between}) > 1
    assert len(alone.between) == 12
    assert plain.between == alone.between
    assert rated.between == alone.between
    assert len(made.optimizers[0].seen) == 12


def test_all_schedulers_of_torch_are_among_them() -> None:
    assert set(SCHEDULERS) == set(S.__all__) - {"LRScheduler"}


def test_a_phases_rates_hold_while_the_optimizer_steps() -> None:
    made = fit(Foreign(Seen), FinetuningSchedule(RATED))
    seen = made.optimizers[0].seen
    assert [step["head"] for step in seen] == pytest.approx(
        [0.05 / 3, 0.1 / 3, *[0.05] * 2, *[0.02] * 4, 0.025, *[0.05] * 3]
    )
    assert seen[11] == pytest.approx({"stem": 0.0125, "stage1": 0.025, "stage2": 0.05, "head": 0.05})
    assert all(group["lr"] == 0.05 for group in made.optimizers[0].param_groups)


def test_rates_of_a_phase_are_refused_without_named_groups_with_the_line_to_write() -> None:
    class Plain(Foreign):
        def configure_optimizers(self) -> Any:
            return AdamW(self.parameters(), lr=0.1)

    fit(Plain(), FinetuningSchedule(PHASES))
    with pytest.raises(ValueError, match=r"AdamW\(param_groups\(self, lr=\.\.\.\)\)"):
        fit(Plain(), FinetuningSchedule(RATED))


def test_a_phases_rate_for_a_stage_whose_rate_is_zero_is_refused() -> None:
    class Still(Foreign):
        def configure_optimizers(self) -> Any:
            return AdamW(param_groups(self, 0.0, head_lr=0.1))

    fit(Still(), FinetuningSchedule("full"), max_epochs=1)
    with pytest.raises(ValueError, match="whose rate in param_groups is 0"):
        fit(Still(), FinetuningSchedule({"preset": "full", "layer_decay": 0.5}))


def test_a_forward_that_fails_leaves_the_rates_as_they_are() -> None:
    class Broken(Foreign):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise RuntimeError("broken")

    module = Broken(Seen)
    made = trainer(FinetuningSchedule(RATED))
    with pytest.raises(RuntimeError, match="broken"):
        made.fit(module, Batches(), val_loader())
    assert all(group["lr"] == 0.05 for group in made.optimizers[0].param_groups)


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (lambda g: AdamW(g, fused=True), {}),
        (lambda g: AdamW(g, foreach=True), {"gradient_clip_val": 0.1}),
        (lambda g: SGD(g, momentum=0.9, foreach=True), {"accumulate_grad_batches": 2}),
        (AdamW, {"precision": "bf16-mixed"}),
    ],
    ids=["fused", "foreach and clipping", "accumulation", "bf16"],
)
@pytest.mark.parametrize("phases", [PHASES, RATED], ids=["plain", "rated"])
def test_frozen_parts_do_not_move_and_the_head_keeps_its_moments(phases: Any, optimizer: Any, options: Any) -> None:
    module = Foreign(optimizer)
    first = module.encoder[0][0].weight.detach().clone()
    made = fit(module, FinetuningSchedule(phases[:2]), max_epochs=2, **options)
    assert torch.equal(module.encoder[0][0].weight, first)
    state = made.optimizers[0].state
    assert module.encoder[0][0].weight not in state
    assert module.encoder[2][0].weight in state
    steps = {int(entry["step"]) for entry in state.values() if "step" in entry}
    assert steps in (set(), {4, 8})


def test_several_optimizers_under_manual_optimization() -> None:
    class Two(Foreign):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            for optimizer in self.optimizers():
                optimizer.step()

        def configure_optimizers(self) -> Any:
            groups = param_groups(self, 0.05)
            return [
                Seen([g for g in groups if g["stage"] == "head"]),
                Seen([g for g in groups if g["stage"] != "head"]),
            ]

    phases = [{"train": "head"}, {"at": {"fraction": 0.5}, "train": "all", "layer_decay": 0.5, "lr": 0.1}]
    module = Two()
    made = fit(module, FinetuningSchedule(phases), max_epochs=2)
    head, body = (optimizer.seen for optimizer in made.optimizers)
    assert [step["head"] for step in head] == [0.05] * 4 + [0.1] * 4
    assert body[-1] == pytest.approx({"stem": 0.025, "stage1": 0.05, "stage2": 0.1})


def test_weight_averaging_follows_what_trains() -> None:
    module = Foreign(AdamW)
    first = {name: p.detach().clone() for name, p in module.named_parameters()}
    fit(module, FinetuningSchedule(PHASES[:2]), EMAWeightAveraging(decay=0.5), max_epochs=2)
    moved = {name for name, p in module.named_parameters() if not torch.equal(p, first[name])}
    assert moved == {name for name in first if name.startswith(("encoder.2", "classifier"))}


class Ran(Callback):
    """The number of steps that the optimizer had made after each batch."""

    def __init__(self) -> None:
        self.counts: list[int] = [0]

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.counts.append(len(vars(trainer.optimizers[0]).get("seen", ())))


def test_steps_that_a_gradient_scaler_skips_leave_the_phases_rates_where_they_belong() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**18)
    module, ran = Foreign(Seen), Ran()
    first = module.encoder[0][0].weight.detach().clone()
    plugins = [MixedPrecision("16-mixed", "cpu", scaler=scaler)]
    made = fit(module, FinetuningSchedule(RATED[:2]), TrainabilityAudit(), ran, max_epochs=2, plugins=plugins)
    expected = [0.05 / 3, 0.1 / 3, *[0.05] * 2, *[0.02] * 4]
    steps = [step for step in range(8) if ran.counts[step + 1] > ran.counts[step]]
    assert 0 < len(steps) < 8
    assert [step["head"] for step in made.optimizers[0].seen] == pytest.approx([expected[step] for step in steps])
    assert all(group["lr"] == 0.05 for group in made.optimizers[0].param_groups)
    assert torch.equal(module.encoder[0][0].weight, first)
