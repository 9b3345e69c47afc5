import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, TensorDataset

from lit_transfer.callbacks import WeightLoading
from lit_transfer.modules import ImageClassifier
from lit_transfer.weights import WeightsError


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())


class Foreign(LightningModule):
    """Knows nothing of this library; its encoder may be made late."""

    def __init__(self, late: bool = False) -> None:
        super().__init__()
        if not late:
            self.configure_model()

    def configure_model(self) -> None:
        if not hasattr(self, "encoder"):
            self.encoder, self.answer = net(), nn.Linear(8, 2)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.answer(self.encoder(batch[0])), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.manual_seed(7)
    saved = {f"module.{name}": value for name, value in net().state_dict().items()}
    torch.save({"epoch": 3, "state_dict": saved, "best_acc": 0.9}, tmp_path / "model_best.pth.tar")
    return tmp_path / "model_best.pth.tar"


def fit(
    module: LightningModule,
    *callbacks: Any,
    folder: Path,
    strategy: Any = "auto",
    devices: Any = "auto",
    **arguments: Any,
) -> Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    placing = {"accelerator": "cpu", "strategy": strategy, "devices": devices, "default_root_dir": folder}
    trainer = Trainer(max_epochs=1, callbacks=list(callbacks), **placing, **quiet)
    loader = DataLoader(TensorDataset(torch.zeros(4, 4), torch.zeros(4, dtype=torch.long)), batch_size=2)
    trainer.fit(module, loader, **arguments)
    return trainer


def weights_in(file: Path) -> list[Tensor]:
    return list(torch.load(file, weights_only=True)["state_dict"].values())


@pytest.mark.parametrize("late", [False, True])
def test_loads_into_any_module_and_says_so_in_its_checkpoints(file: Path, tmp_path: Path, late: bool) -> None:
    module, callback = Foreign(late), WeightLoading(file, target="encoder")
    trainer = fit(module, callback, folder=tmp_path)
    loaded = list(module.encoder.state_dict().values())
    assert all(torch.equal(one, other) for one, other in zip(loaded, weights_in(file), strict=True))
    assert callback.report is not None
    assert callback.report.coverage == 1
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    told = torch.load(tmp_path / "after.ckpt", weights_only=True)["weights_from"]
    assert "model_best.pth.tar" in told
    assert "state_dict" in told


class Sharded(Foreign):
    """Makes its layers without memory and shards them, as models too large for one device do."""

    def configure_model(self) -> None:
        if not hasattr(self, "encoder"):
            with torch.device("meta"):
                super().configure_model()
            for part in (self.encoder, self.answer):
                fully_shard(part, mesh=self.device_mesh["data_parallel"])


@pytest.mark.filterwarnings("ignore:DTensor random operators")  # Lightning draws what the file does not give
def test_fills_a_module_that_is_sharded_when_it_is_made(file: Path, tmp_path: Path) -> None:
    module, callback = Sharded(late=True), WeightLoading(file, target="encoder")
    strategy = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1)
    try:
        fit(module, callback, folder=tmp_path, strategy=strategy, devices=1)
        whole = [parameter.full_tensor() for parameter in module.encoder.parameters()]
    finally:
        torch.distributed.destroy_process_group()
    assert all(isinstance(parameter, DTensor) for parameter in module.encoder.parameters())
    assert all(torch.equal(one, other) for one, other in zip(whole, weights_in(file), strict=True))


def test_the_report_is_logged(file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    with caplog.at_level(logging.INFO, logger.name):
        logger.addHandler(caplog.handler)  # Lightning's loggers do not hand on
        fit(Foreign(), WeightLoading(file, target="encoder"), folder=tmp_path)
        logger.removeHandler(caplog.handler)
    (told,) = {record.getMessage() for record in caplog.records if "model_best.pth.tar" in record.getMessage()}
    assert "key 'state_dict'" in told
    assert "`module.` removed" in told
    assert "4 tensors, coverage 100.0%" in told


def test_arguments_reach_the_loader(tmp_path: Path) -> None:
    one, other = net().state_dict(), net().state_dict()
    torch.save({"model": one, "model_ema": other}, tmp_path / "f.pth")
    for options, expected in (({}, other), ({"prefer": "plain"}, one), ({"map_location": {"cuda:0": "cpu"}}, other)):
        module = Foreign()
        fit(module, WeightLoading(tmp_path / "f.pth", target="encoder", **options), folder=tmp_path)
        assert torch.equal(module.encoder[0].weight, expected["0.weight"])


def test_a_resumed_run_keeps_the_weights_of_its_checkpoint(file: Path, tmp_path: Path) -> None:
    module = Foreign()
    trainer = fit(module, folder=tmp_path)
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    file.unlink()  # it is not needed any more
    resumed, callback = Foreign(), WeightLoading(file, target="encoder")
    fit(resumed, callback, folder=tmp_path, ckpt_path=tmp_path / "own.ckpt")
    assert callback.report is None
    assert torch.equal(resumed.encoder[0].weight, module.encoder[0].weight)


def test_a_file_of_another_model_stops_the_fit_and_leaves_the_module(file: Path, tmp_path: Path) -> None:
    module = Foreign()
    module.encoder[0] = nn.Linear(5, 8)
    before = [value.clone() for value in module.state_dict().values()]
    with pytest.raises(WeightsError):
        fit(module, WeightLoading(file, target="encoder"), folder=tmp_path)
    assert all(torch.equal(one, other) for one, other in zip(module.state_dict().values(), before, strict=True))


def test_weights_from_two_places_are_refused(file: Path, tmp_path: Path) -> None:
    module = ImageClassifier("resnet18", weights=None, num_classes=2)
    module.backbone.weights = "IMAGENET1K_V1"
    module.validation_step = None
    with pytest.raises(ValueError, match=r"weights='IMAGENET1K_V1' of ImageClassifier and path='.*model_best.pth.tar'"):
        fit(module, WeightLoading(file), folder=tmp_path)


def test_a_second_fit_goes_on_with_the_weights_it_has(file: Path, tmp_path: Path) -> None:
    module, callback = Foreign(), WeightLoading(file, target="encoder")
    fit(module, callback, folder=tmp_path)
    with torch.no_grad():
        module.encoder[0].weight.zero_()
    fit(module, callback, folder=tmp_path)
    assert not module.encoder[0].weight.any()
