from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from resumable import Foreign, LeNet, Twin, by_hand, gap, loader, net, train, trainer
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
    with pytest.warns(UserWarning, match=r"is carried over: .*normalizer; best_acc=0.5: no callback"):
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
    monkeypatch.setattr("lit_transfer.callbacks._reading.read_training_state", None)
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


def changed(path: Path, target: Path, **entries: Any) -> Path:
    """The checkpoint with other entries; None removes one."""
    content = {**torch.load(path, weights_only=True), **entries}
    torch.save({name: value for name, value in content.items() if value is not None}, target)
    return target


@pytest.mark.parametrize("prefix", ["module.", "module.module.", "_orig_mod.", "_fsdp_wrapped_module."])
def test_lightnings_own_with_wrappers_in_its_names_resumes_alike(own: Path, tmp_path: Path, prefix: str) -> None:
    weights = torch.load(own, weights_only=True)["state_dict"]
    named = {name.replace("net.", f"net.{prefix}"): value for name, value in weights.items()}
    file = changed(own, tmp_path / "wrapped.ckpt", state_dict=named, lit_transfer_restore=None)
    assert gap(resumed(own, Foreign("adamw")), resumed(file, Foreign("adamw"), TolerantRestore())) == 0


def test_a_new_head_is_fresh_with_fresh_moments_and_the_body_goes_on(own: Path) -> None:
    module = Foreign("adamw", classes=5)
    head = module.net[3].weight.detach().clone()
    seen: dict[str, Any] = {}

    class Look(TolerantRestore):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            super().on_train_start(trainer, pl_module)
            state = trainer.optimizers[0].state
            seen.update(head=len(state[pl_module.net[3].weight]), body=int(state[pl_module.net[0].weight]["step"]))
            seen["weight"] = pl_module.net[3].weight.detach().clone()

    with pytest.warns(UserWarning, match=r"fresh weights for net.3.weight, net.3.bias.*fresh moments for net.3.weight"):
        resumed(own, module, Look())
    assert seen.pop("weight").equal(head)
    assert seen == {"head": 0, "body": 8}
    with pytest.raises(WeightsError, match=r"does not fill net.3.weight, net.3.bias"):
        trainer(1, TolerantRestore()).test(Foreign(classes=5), loader(), ckpt_path=own, verbose=False)


def test_what_weights_only_refuses_is_read_without_running_it(own: Path, tmp_path: Path) -> None:
    file = changed(own, tmp_path / "objects.ckpt", hyper_parameters={"activation": nn.ReLU(), "lr": 0.1})
    with pytest.raises(Exception, match="weights_only"):
        resumed(file, Foreign("adamw"))
    with pytest.warns(UserWarning, match=r"is carried over: .*hyper_parameters.activation: no plain value"):
        module = resumed(file, Foreign("adamw"), TolerantRestore())
    assert gap(module, resumed(own, Foreign("adamw"))) == 0


def test_lightnings_own_with_weights_only_goes_on_with_them(own: Path, tmp_path: Path) -> None:
    gone = dict.fromkeys(("callbacks", "optimizer_states", "lr_schedulers", "lit_transfer_restore"))
    file = changed(own, tmp_path / "weights.ckpt", **gone)
    module = Foreign("adamw")
    with pytest.warns(UserWarning, match="the optimizer starts afresh"):
        resumed(file, module, TolerantRestore())
    assert module.seen[0][0] == 2


def test_another_optimizer_and_another_scheduler_of_lightnings_own(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(UserWarning, match="the file's is AdamW, this run's SGD"):
        assert resumed(own, Foreign("sgd"), TolerantRestore()).seen[0] == (2, 8)
    monkeypatch.setattr("resumable.StepLR", lambda optimizer, _: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5))
    with pytest.warns(UserWarning, match="the scheduler ExponentialLR starts afresh: the file's is of another kind"):
        resumed(own, Foreign("adamw"), TolerantRestore())


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_another_precision_keeps_weights_and_moments(own: Path, precision: Any) -> None:
    module, run = Foreign("adamw"), trainer(3, TolerantRestore(), precision=precision)
    as_floats = lambda batch, *_: [batch[0].to(module.net[0].weight.dtype), batch[1]]  # noqa: E731  (a hook in one line)
    module.transfer_batch_to_device = as_floats  # type: ignore[method-assign]  # of one object
    run.fit(module, loader(), loader(), ckpt_path=own)
    moments = run.optimizers[0].state[module.net[0].weight]
    assert moments["exp_avg"].dtype == module.net[0].weight.dtype
    assert int(moments["step"]) == 12
    assert gap(module.float(), resumed(own, Foreign("adamw"), epochs=3)) < 0.05


def test_a_file_without_counters_starts_at_nought(file: Path) -> None:
    torch.save(net(), file)  # a whole module
    module = Foreign()
    with pytest.warns(UserWarning, match="the optimizer starts afresh"):
        trainer(1, TolerantRestore()).fit(module, loader(), loader(), ckpt_path=file)
    assert module.seen[0] == (0, 0)


def test_the_epoch_may_be_the_next_one(file: Path) -> None:
    by_hand(file, "sgd")
    module = Foreign()
    trainer(3, TolerantRestore(epoch_means="next")).fit(module, loader(), loader(), ckpt_path=file)
    assert module.seen[0] == (2, 8)
    with pytest.raises(ValueError, match="epoch_means must be 'finished' or 'next', got 'last'"):
        TolerantRestore(epoch_means="last")  # type: ignore[arg-type]  # it is to be refused


@pytest.mark.parametrize("tag", ["cuda:3", "mps", "xpu:1"])
def test_a_file_from_a_device_that_is_not_here(file: Path, monkeypatch: pytest.MonkeyPatch, tag: str) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(torch.serialization, "location_tag", lambda storage: tag)
        network, optimizer, scheduler = by_hand(file, "adam")
    with pytest.raises(Exception, match=tag.partition(":")[0]):
        torch.load(file, weights_only=True)
    train(network, optimizer, scheduler, 1)
    module, run = Foreign("adam"), trainer(4, TolerantRestore())
    run.fit(module, loader(), loader(), ckpt_path=file)
    assert gap(network, module.net) == 0
    assert {value.device.type for value in run.optimizers[0].state[module.net[0].weight].values()} == {"cpu"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_moments_land_on_their_parameters_gpu(file: Path, kind: str) -> None:
    by_hand(file, kind)
    module, run = Foreign(kind), trainer(4, TolerantRestore(), accelerator="gpu", devices=1)
    run.fit(module, loader(), loader(), ckpt_path=file)
    weight = module.net[0].weight
    moments = {name: value for name, value in run.optimizers[0].state[weight].items() if name != "step"}
    assert weight.is_cuda
    assert {value.device for value in moments.values()} == {weight.device}


def test_the_courses_interrupted_run_goes_on_at_epoch_five(real: Path) -> None:
    """The file against the loop by hand that goes on from it, three epochs, batches of 4, float32, one thread, CPU."""
    path = real / "ckpts/course/lesson-28_checkpoint_4_epoch.pkl"
    module, callback = LeNet(), TolerantRestore()
    hand, content = LeNet(), torch.load(path, weights_only=True)
    hand.load_state_dict(content["model_state_dict"])
    (optimizer,), (scheduler,) = hand.configure_optimizers()
    optimizer.load_state_dict(content["optimizer_state_dict"])
    for _ in range(3):
        for batch in LeNet.data():
            optimizer.zero_grad()
            hand.training_step(batch).backward()
            optimizer.step()
        scheduler.step()
    run = trainer(8, callback)
    with pytest.warns(UserWarning, match="the scheduler StepLR starts afresh"):
        run.fit(module, LeNet.data(), ckpt_path=path)
    assert module.epochs == [5, 6, 7]
    assert run.global_step == 8 * 2
    assert gap(hand, module) == 0


@pytest.mark.parametrize("name", ["lesson-30_model_in_gpu_0.pkl", "lesson-30_model_in_multi_gpu.pkl"])
def test_the_courses_twins_into_a_plain_and_a_wrapped_module(real: Path, name: str) -> None:
    path = real / "ckpts/course" / name
    shapes = [tensor.shape for tensor in torch.load(path, weights_only=True, map_location="cpu").values()]
    for wrap in (lambda net: net, nn.DataParallel):
        module = Twin(wrap, shapes)
        trainer(1, TolerantRestore()).validate(module, loader(), ckpt_path=path, verbose=False)
        expected = torch.load(path, weights_only=True, map_location="cpu").values()
        assert all(torch.equal(a, b) for a, b in zip(module.state_dict().values(), expected, strict=True))


def test_a_classifier_whose_rows_are_put_in_another_order_has_fresh_moments(own: Path, tmp_path: Path) -> None:
    weights = torch.load(own, weights_only=True)["state_dict"]
    named = {name.replace("net.", "net.module."): value for name, value in weights.items()}
    hparams = {"class_names": ["ant", "bee", "wasp"]}
    file = changed(
        own, tmp_path / "classes.ckpt", state_dict=named, hyper_parameters=hparams, lit_transfer_restore=None
    )
    module = Foreign("adamw")
    module.class_names = ["wasp", "ant", "bee"]  # type: ignore[assignment]  # as modules of this library have it
    with pytest.warns(UserWarning, match=r"fresh moments for net.3.weight, net.3.bias\."):
        trainer(2, TolerantRestore()).fit(module, loader(), loader(), ckpt_path=file)
    assert torch.equal(module.net[3].bias, weights["net.3.bias"][[2, 0, 1]])


def test_a_gradient_scaler_goes_on_where_this_run_scales_too(file: Path) -> None:
    scale = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scale.scale(torch.ones(1))
    by_hand(file, "sgd", scaler=scale.state_dict())
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    trainer(4, TolerantRestore(), plugins=[plugin]).fit(Foreign(), loader(), loader(), ckpt_path=file)
    assert plugin.scaler is not None
    assert plugin.scaler.get_scale() == 1024  # torch begins with 65536
    with pytest.warns(UserWarning, match="the gradient scaler: this run has none"):
        trainer(4, TolerantRestore()).fit(Foreign(), loader(), loader(), ckpt_path=file)
