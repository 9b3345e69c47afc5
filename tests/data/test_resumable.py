# ruff: noqa: NPY002  (numpy's old generator is one of those that datasets draw from)
import random

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, Dataset

from lit_transfer.data import ResumableLoader


class Drawing(Dataset):
    """What a user's dataset with augmentation does: draws from three generators, and knows of no epoch."""

    def __len__(self):
        return 21

    def __getitem__(self, index):
        return torch.tensor([index, torch.rand(1).item(), random.random(), np.random.rand()], dtype=torch.float64)


def batches(loader, epoch):
    loader.sampler.set_epoch(epoch)
    return [batch.tolist() for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_where_another_one_stopped(workers):
    """Float64, CPU, batches of 4; five of them, since the sixth would hold a single sample."""
    whole = batches(ResumableLoader(Drawing(), 4), 2)
    assert len(whole) == 5
    first, second = (ResumableLoader(Drawing(), 4, num_workers=workers) for _ in range(2))
    first.sampler.set_epoch(2)
    running = iter(first)
    assert [next(running).tolist() for _ in range(3)] == whole[:3]
    torch.manual_seed(5)
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()
    assert second.batches_done(2) == 3
    assert batches(second, 2) == whole[3:]
    assert batches(second, 3) == batches(first, 3)


def test_nothing_is_drawn_from_the_training_and_nothing_read_before_it_is_wanted():
    loader = ResumableLoader(Drawing(), 4)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    running = iter(loader)
    loader.sampler.set_epoch(7)  # Lightning tells the epoch only now
    assert [next(running).tolist()] == batches(ResumableLoader(Drawing(), 4), 7)[:1]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]


def test_a_place_is_kept_in_samples_and_so_holds_for_another_batch_size():
    small, large = ResumableLoader(Drawing(), 2), ResumableLoader(Drawing(), 8)
    running = iter(small)
    seen = [next(running) for _ in range(4)]
    large.load_state_dict(small.state_dict())
    assert large.batches_done(0) == 1
    indices = {row[0].item() for batch in [*seen, *large] for row in batch}
    assert len(indices) == 21


def test_a_balanced_loader_goes_on_where_another_one_stopped_and_tells_if_it_no_longer_is():
    options = {"batch_size": 4, "balance": [0] * 3 + [1] * 18}
    whole = batches(ResumableLoader(Drawing(), **options), 1)
    assert sum(row[0] < 3 for batch in whole for row in batch) in (10, 11)
    first, second = (ResumableLoader(Drawing(), **options) for _ in range(2))
    first.sampler.set_epoch(1)
    running = iter(first)
    assert [next(running).tolist() for _ in range(3)] == whole[:3]
    second.load_state_dict(first.state_dict())
    assert batches(second, 1) == whole[3:]
    with pytest.warns(UserWarning, match="had balanced 1 when the checkpoint was written and has 0"):
        ResumableLoader(Drawing(), 4).load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match="leave one of them out"):
        ResumableLoader(Drawing(), sampler=[1, 2], **options)


def test_other_data_than_before_is_told():
    loader = ResumableLoader(Drawing(), 4)
    with pytest.warns(UserWarning, match="had size 30 when the checkpoint was written and has 21"):
        loader.load_state_dict({"epoch": 0, "samples": 8, "size": 30, "seed": 0})


class Seen(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.seen = torch.nn.Linear(4, 1).double(), []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch.tolist()))
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-6)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_lightning_keeps_the_place_without_any_help(tmp_path):
    def fit(loader, **options):
        module = Seen()
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        defaults = {"max_epochs": 3, "accelerator": "cpu", "enable_model_summary": False}
        trainer = Trainer(**quiet | defaults | options.pop("trainer", {}))
        module.on_train_batch_end = lambda outputs, batch, index: (
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt") if options.get("save") else None
        )
        trainer.fit(module, loader, ckpt_path=options.get("ckpt_path"))
        return module.seen

    whole = fit(ResumableLoader(Drawing(), 4), save=True)
    for step in (2, 5, 8):  # amid the first epoch, its last batch, amid the second
        resumed = fit(ResumableLoader(Drawing(), 4, num_workers=2), ckpt_path=tmp_path / f"{step}.ckpt")
        assert resumed == whole[step:], step
    with pytest.warns(UserWarning, match="requested to overfit"):
        fitted = fit(ResumableLoader(Drawing(), 4), trainer={"overfit_batches": 1, "max_epochs": 1})
    assert len(fitted) == 1


def test_a_sampler_of_the_users_own_takes_its_place():
    loader = ResumableLoader(Drawing(), 4, sampler=[3, 1, 2], seed_samples=False)
    assert isinstance(loader, DataLoader)
    assert [row[0].item() for batch in loader for row in batch] == [3, 1, 2]
    assert loader.state_dict() == {}
    assert loader.batches_done(0) == 0
