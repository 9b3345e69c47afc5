"""Early stopping counts from a schedule's last phase on; where it does not, the phases left out are told."""

from typing import Any

import pytest
from foreign_module import Batches, Foreign, trainer, val_loader
from lightning.pytorch.callbacks import EarlyStopping

from lit_transfer.callbacks import FinetuningSchedule, PhasedStopping

PHASES: list[Any] = [{"train": "head"}, {"at": {"epoch": 4}, "train": "all"}]


class Flat(Foreign):
    """Whose metric is best in the first epoch."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", float(self.current_epoch))


def fit(*callbacks: Any, **options: Any) -> int:
    made = trainer(*callbacks, max_epochs=12, num_sanity_val_steps=0, **options)
    made.fit(Flat(), Batches(), val_loader())
    return made.current_epoch


@pytest.mark.parametrize("interval", [1.0, 0.5])
def test_patience_is_counted_in_the_last_phase(interval: float) -> None:
    stopping = PhasedStopping("val_loss", patience=2)
    epochs = fit(stopping, FinetuningSchedule(PHASES), val_check_interval=interval)
    assert epochs == (7 if interval == 1.0 else 6)
    assert stopping.best_score == 4


def test_without_a_schedule_it_is_lightnings() -> None:
    assert fit(PhasedStopping("val_loss", patience=2)) == fit(EarlyStopping("val_loss", patience=2)) == 3


def test_lightnings_own_tells_which_phases_it_cut_off() -> None:
    with pytest.warns(UserWarning, match="EarlyStopping ended the fit in phase 1 of 2. PhasedStopping"):
        assert fit(EarlyStopping("val_loss", patience=2), FinetuningSchedule(PHASES)) == 3
