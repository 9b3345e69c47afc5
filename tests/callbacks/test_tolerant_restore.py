from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from resumable import Foreign, by_hand, gap, loader, net, train, trainer
from torch import nn

from lit_transfer.callbacks import FinetuningSchedule, TolerantRestore
from lit_transfer.weights import WeightsError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model_best.pth.tar"


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_goes_on_like_the_loop_by_hand_bit_by_bit(file: Path, kind: str) -> None:
    """Batches of 16, float32, one thread, CPU; the new run's groups are other ones and in another order."""
    network, optimizer, scheduler = by_hand(file, kind)
    train(network, optimizer, scheduler, 3)
    module, callback = Foreign(kind), TolerantRestore()
    run = trainer(6, callback)
    own = run.strategy.checkpoint_io
    run.fit(module, loader(), loader(), ckpt_path=file)
    assert gap(network, module.net) == 0
    assert module.seen[0] == (3, 12)
    assert (run.current_epoch, run.global_step) == (6, 24)
    assert run.strategy.checkpoint_io is own


def test_measures_and_predicts_from_the_file(file: Path) -> None:
    network, _, _ = by_hand(file, "sgd")
    network.eval()
    images, _ = next(iter(loader()))
    run, module = trainer(1, TolerantRestore()), Foreign()
    answers = run.predict(module, loader(), ckpt_path=file)
    assert torch.allclose(answers[0], network(images), rtol=0, atol=1e-5)
    expected = run.validate(Foreign(), loader(), ckpt_path=file, verbose=False)
    assert run.test(Foreign(), loader(), ckpt_path=file, verbose=False) == expected


def test_a_worse_epoch_does_not_replace_the_best(file: Path, tmp_path: Path) -> None:
    by_hand(file, "sgd", best_acc=99.0)
    keeps = ModelCheckpoint(tmp_path / "kept", monitor="val_acc", mode="max")
    stops = EarlyStopping("val_acc", mode="max", patience=2)
    run = trainer(9, TolerantRestore(), keeps, stops, enable_checkpointing=True)
    run.fit(Foreign(), loader(), loader(), ckpt_path=file)
    assert not list((tmp_path / "kept").glob("*.ckpt"))
    assert keeps.best_model_path == str(file)
    assert float(keeps.best_model_score) == pytest.approx(0.99)  # an accuracy above 1 is a percentage
    assert run.current_epoch == 5  # two epochs did not reach it


def test_what_is_not_carried_over_is_told(file: Path) -> None:
    by_hand(file, "sgd", normalizer={"mean": 0.1}, best_acc=0.5)
    with pytest.warns(UserWarning, match=r"not carried over from .*normalizer; best_acc=0.5: no callback"):
        trainer(4, TolerantRestore()).fit(Foreign(), loader(), loader(), ckpt_path=file)


def test_another_optimizer_gets_weights_and_counters_only(file: Path) -> None:
    by_hand(file, "sgd")
    module = Foreign("adamw")
    with pytest.warns(UserWarning, match="the file's is SGD, this run's AdamW; the scheduler StepLR starts afresh"):
        trainer(4, TolerantRestore()).fit(module, loader(), loader(), ckpt_path=file)
    assert module.seen[0] == (3, 12)


def test_moments_of_another_shape_are_refused_before_anything_is_touched(file: Path) -> None:
    by_hand(file, "sgd")
    saved = torch.load(file, weights_only=True)
    saved["optimizer_state_dic"]["state"][4]["momentum_buffer"] = torch.zeros(5, 8)
    torch.save(saved, file)
    module = Foreign()
    before = [value.clone() for value in module.state_dict().values()]
    with pytest.raises(
        WeightsError, match=r"parameter 4 .* \[5, 8\], and module.3.weight has \[3, 8\].*optimizer='fresh'"
    ):
        trainer(4, TolerantRestore()).fit(module, loader(), loader(), ckpt_path=file)
    assert all(torch.equal(a, b) for a, b in zip(before, module.state_dict().values(), strict=True))
    with pytest.warns(UserWarning, match="the optimizer starts afresh"):
        trainer(4, TolerantRestore(optimizer="fresh")).fit(module, loader(), loader(), ckpt_path=file)


@pytest.mark.parametrize("prefix", ["", "module.", "module.module.", "_orig_mod.", "_fsdp_wrapped_module."])
def test_weights_alone_with_any_prefix_into_a_plain_and_a_wrapped_module(file: Path, prefix: str) -> None:
    torch.save({f"{prefix}{name}": value for name, value in net().state_dict().items()}, file)
    for wrap in (None, nn.DataParallel):
        module = Foreign(wrap=wrap)
        trainer(1, TolerantRestore()).validate(module, loader(), ckpt_path=file, verbose=False)
        saved = torch.load(file, weights_only=True).values()
        assert all(torch.equal(a, b) for a, b in zip(module.state_dict().values(), saved, strict=True))


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of Lightning's own, after two epochs with AdamW and TolerantRestore."""
    path = tmp_path_factory.mktemp("own") / "own.ckpt"
    torch.manual_seed(3)
    run = trainer(2, TolerantRestore())
    run.fit(Foreign("adamw"), loader(), loader())
    run.save_checkpoint(path)
    return path


def resumed(path: Path, module: Foreign, *callbacks: Any, epochs: int = 4) -> Foreign:
    trainer(epochs, *callbacks).fit(module, loader(), loader(), ckpt_path=path)
    return module


def test_a_file_of_lightnings_own_goes_lightnings_way(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = resumed(own, Foreign("adamw"))
    monkeypatch.setattr("lit_transfer.callbacks.tolerant_restore.read_training_state", None)
    assert gap(plain, resumed(own, Foreign("adamw"), TolerantRestore())) == 0


def test_other_parameter_groups_find_their_moments(own: Path) -> None:
    assert gap(resumed(own, Foreign("adamw")), resumed(own, Foreign("adamw", groups=1), TolerantRestore())) == 0


def test_a_schedule_beside_it_works(file: Path) -> None:
    by_hand(file, "sgd")
    module = Foreign()
    schedule = FinetuningSchedule([{"train": "all"}, {"at": {"epoch": 3}, "train": ["net.3"]}])
    trainer(4, schedule, TolerantRestore()).fit(module, loader(), loader(), ckpt_path=file)
    saved = torch.load(file, weights_only=True)["model_state_dict"]
    assert torch.equal(module.net[0].weight, saved["module.0.weight"])
    assert not torch.equal(module.net[3].weight, saved["module.3.weight"])
