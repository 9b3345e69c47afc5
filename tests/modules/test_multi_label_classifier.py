"""Labels with thresholds of their own: tuning, metrics, answers, checkpoints; CPU, float32."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from sklearn.metrics import average_precision_score, f1_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_transfer import WeightsError, load_predictor, load_weights
from lit_transfer.modules import LabelPrediction, MultiLabelClassifier, TransferModule
from lit_transfer.modules._thresholds import best_thresholds

MakeTrainer = Callable[..., Trainer]
FAST = {"backbone_lr_factor": 1.0, "optimizer": lambda groups: torch.optim.AdamW(groups, lr=2e-2)}
STILL = {"optimizer": lambda groups: torch.optim.SGD(groups, lr=0.0)}


def loader(targets: torch.Tensor) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.zeros(len(targets), 3, 16, 16), targets), batch_size=4)


@pytest.mark.parametrize(
    ("probabilities", "targets", "threshold"),
    [
        ([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], 0.5),  # any of 0.2 to 0.8 is right
        ([0.1, 0.2, 0.3, 0.9], [0, 1, 1, 1], 0.15),
        ([0.1, 0.6, 0.8, 0.9], [0, 0, 1, 1], 0.7),
        ([0.6, 0.7], [1, 1], 0.5),
        ([0.2, 0.4], [1, 1], 0.1),
        ([0.3, 0.3, 0.3], [1, 0, 1], 0.15),
        ([0.1, 0.2, 0.3], [0, 0, 0], 0.5),
        ([0.1, 0.25, 0.35, 0.45], [1, 1, 0, 1], 0.05),  # F1 6/7; without the first 2/3
        ([0.2, 0.25, 0.45, 0.49], [1, 0, 0, 1], 0.47),  # 2/3 in the highest gap and in the lowest
    ],
)
def test_the_best_threshold(probabilities: list[float], targets: list[int], threshold: float) -> None:
    found = best_thresholds(torch.tensor([probabilities]).T, torch.tensor([targets]).T)
    assert found.tolist() == pytest.approx([threshold])


def test_no_threshold_is_better_than_the_best() -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(60, 5, generator=generator).round(decimals=2)
    t = torch.rand(60, 5, generator=generator) < p
    for label, threshold in enumerate(best_thresholds(p, t)):
        scores = [f1_score(t[:, label], p[:, label] >= other) for other in torch.linspace(0, 1, 401)]
        assert f1_score(t[:, label], p[:, label] >= threshold) == pytest.approx(max(scores))


def test_neighbours_in_float32_are_told_apart() -> None:
    low = torch.tensor(0.7)
    for _ in range(2):  # the middle is rounded down after one of them, and up after the other
        high = torch.nextafter(low, torch.tensor(1.0))
        p = torch.stack([low, high])
        assert (p >= best_thresholds(p[:, None], torch.tensor([[0], [1]]))).tolist() == [False, True]
        low = high


def test_learns_and_logs_its_metrics(labels: Any, backbone: nn.Module, make_trainer: MakeTrainer) -> None:
    module, trainer = MultiLabelClassifier(backbone, **FAST), make_trainer(max_epochs=8)
    trainer.fit(module, labels)
    logged = trainer.validate(module, labels, verbose=False)[0]
    by_name = {"val_f1_red", "val_f1_green", "val_f1_blue"}
    assert set(logged) == {"val_loss", "val_map", "val_f1"} | by_name
    assert logged["val_map"] > 0.8
    p = module.eval().predict_step(labels.train_dataset.tensors[0]).detach()
    assert logged["val_map"] == pytest.approx(average_precision_score(labels.targets, p, average="macro"), abs=1e-4)
    expected = f1_score(labels.targets, p >= module.thresholds, average=None)
    assert [logged[f"val_f1_{name}"] for name in labels.label_names] == pytest.approx(expected.tolist(), abs=1e-4)
    assert logged["val_f1"] == pytest.approx(expected.mean(), abs=1e-4)


def test_thresholds_are_tuned_in_validation_and_kept_in_tests(
    labels: Any, backbone: nn.Module, make_trainer: MakeTrainer
) -> None:
    module = MultiLabelClassifier(backbone, init_bias=False, **STILL)
    module.num_outputs, module.label_names = 3, labels.label_names
    module._build()
    torch.nn.init.constant_(module.head.bias, -3.0)
    torch.nn.init.normal_(module.head.weight, std=0.1)
    logged = make_trainer().test(module, labels, verbose=False)[0]
    assert module.thresholds.tolist() == [0.5] * 3
    assert logged["test_f1"] == 0
    make_trainer(max_epochs=1).fit(module, labels)
    assert (module.thresholds < 0.3).all()
    before = module.thresholds.clone()
    labels.train_dataset.tensors[1].zero_()[0] = 1
    logged = make_trainer().test(module, labels, verbose=False)[0]
    assert logged["test_f1"] > 0
    assert torch.equal(module.thresholds, before)


def test_the_sanity_check_tunes_nothing(labels: Any, backbone: nn.Module, make_trainer: MakeTrainer) -> None:
    module = MultiLabelClassifier(backbone, **STILL)
    make_trainer(max_epochs=1, num_sanity_val_steps=1, limit_val_batches=1, check_val_every_n_epoch=2).fit(
        module, labels
    )
    assert module.thresholds.tolist() == [0.5] * 3
    assert module.figures("val") == {}


def test_a_label_without_an_image_keeps_its_threshold_and_is_told(
    labels: Any, backbone: nn.Module, make_trainer: MakeTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    labels.train_dataset.tensors[1][:, 1] = 0
    trainer, module = make_trainer(max_epochs=2), MultiLabelClassifier(backbone)
    with caplog.at_level(logging.INFO):
        trainer.fit(module, labels)
    told = [record.getMessage() for record in caplog.records if "No validation image has green" in record.getMessage()]
    assert len(told) == 1
    assert module.thresholds[1] == 0.5
    logged = trainer.callback_metrics
    assert "val_f1_green" not in logged
    assert logged["val_f1"] == pytest.approx(float(logged["val_f1_red"] + logged["val_f1_blue"]) / 2)
    assert logged["val_map"].isfinite()


@pytest.fixture
def saved(labels: Any, make_trainer: MakeTrainer, tmp_path: Path) -> Path:
    trainer = make_trainer(max_epochs=1)
    trainer.fit(MultiLabelClassifier("resnet18", weights=None, input_size=32), labels)
    trainer.lightning_module.thresholds.copy_(torch.tensor([0.0, 0.25, 1.0]))
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    return tmp_path / "saved.ckpt"


def test_labels_and_thresholds_live_in_the_checkpoint(saved: Path) -> None:
    torch.load(saved, weights_only=True)
    for loaded in (TransferModule.load_from_checkpoint(saved), MultiLabelClassifier.load_from_checkpoint(saved)):
        assert type(loaded) is MultiLabelClassifier
        assert loaded.num_labels == 3
        assert loaded.label_names == ["red", "green", "blue"]
        assert loaded.thresholds.tolist() == [0, 0.25, 1]


def test_a_file_with_the_labels_in_another_order_is_refused(saved: Path) -> None:
    """The head's rows could be sorted, the thresholds beside it could not."""
    model = MultiLabelClassifier(
        "resnet18", weights=None, input_size=32, label_names=["blue", "green", "red"], init_bias=False
    )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError, match="has the label_names red, green, blue, the model blue, green, red"):
        load_weights(model, saved)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert load_weights(model, saved, target="backbone").coverage == 1
    same = MultiLabelClassifier("resnet18", weights=None, input_size=32, label_names=["red", "green", "blue"])
    load_weights(same, saved)
    assert same.thresholds.tolist() == [0, 0.25, 1]


def test_an_answer_names_the_labels_from_their_thresholds_on(saved: Path) -> None:
    predictor = load_predictor(saved, "cpu")
    answer = predictor(torch.zeros(3, 40, 40))
    assert answer.labels[0] == "red"
    assert "blue" not in answer.labels
    assert list(answer.probabilities) == predictor.output_names
    assert predictor.module.describe_answer(torch.tensor([0.5, 0.25, 0.9])).labels == ["red", "green"]
    assert list(answer.columns()) == ["labels", "p(red)", "p(green)", "p(blue)"]
    assert LabelPrediction(["a", "b"], {}).columns() == {"labels": "a; b"}


def test_a_new_head_is_untuned_also_after_loading(saved: Path, make_trainer: MakeTrainer, tmp_path: Path) -> None:
    module = MultiLabelClassifier.load_from_checkpoint(saved)
    module.reset_head(label_names=["x", "y"])
    assert module.thresholds.tolist() == [0.5, 0.5]
    trainer = make_trainer()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "new.ckpt")
    assert MultiLabelClassifier.load_from_checkpoint(tmp_path / "new.ckpt").label_names == ["x", "y"]


def test_bias_starts_at_the_rates(labels: Any, backbone: nn.Module, make_trainer: MakeTrainer) -> None:
    labels.label_counts = [1, 16, 31]
    module = MultiLabelClassifier(backbone, **STILL)
    make_trainer(max_epochs=1).fit(module, labels)
    torch.testing.assert_close(module.head.bias.detach().sigmoid(), torch.tensor([2, 17, 32]) / 34)


def test_a_plain_loader_tells_the_counts_by_its_targets(backbone: nn.Module, make_trainer: MakeTrainer) -> None:
    data = loader(torch.tensor([[1, 0], [1, 1]] * 4))
    module = MultiLabelClassifier(backbone, num_labels=2, pos_weight="balanced")
    make_trainer(max_epochs=1).fit(module, data, data)
    assert module.loss.pos_weight.tolist() == [1 / 8, 1]
    assert module.label_names is None


def test_weights_of_labels(labels: Any, backbone: nn.Module, make_trainer: MakeTrainer) -> None:
    labels.label_counts = [8, 16, 0]
    module = MultiLabelClassifier(backbone, num_labels=3, pos_weight="balanced")
    make_trainer(max_epochs=1).fit(module, labels)
    assert module.loss.pos_weight.tolist() == [3, 1, 32]
    assert MultiLabelClassifier(backbone, num_labels=2, pos_weight=[1.0, 2.0]).loss.pos_weight.tolist() == [1, 2]
    del labels.train_dataset
    labels.train_dataloader = labels.val_dataloader = lambda: loader(torch.zeros(8, 3))
    with pytest.raises(ValueError, match="pos_weight='balanced' needs the number of images"):
        make_trainer().fit(MultiLabelClassifier(backbone, pos_weight="balanced"), labels)


def test_what_contradicts(labels: Any, backbone: nn.Module, make_trainer: MakeTrainer) -> None:
    with pytest.raises(ValueError, match=r"num_labels=2 contradicts the data, which has 3 labels \(red, green, blue"):
        make_trainer().fit(MultiLabelClassifier(backbone, num_labels=2), labels)
    with pytest.raises(ValueError, match=r"num_labels is not given and the data does not tell it \(label_names\)"):
        make_trainer().fit(MultiLabelClassifier(backbone), loader(torch.zeros(8, 2)), loader(torch.zeros(8, 2)))
    with pytest.raises(ValueError, match="num_labels=3, but label_names has 1 names"):
        MultiLabelClassifier(backbone, num_labels=3, label_names=["a"])
    with pytest.raises(ValueError, match="pos_weight has 1 values for 2 labels"):
        MultiLabelClassifier(backbone, num_labels=2, pos_weight=[1.0])
    module = MultiLabelClassifier(backbone, num_labels=2, init_bias=False)
    with pytest.raises(ValueError, match=r"shape \(4,\), and MultiLabelClassifier has 2 labels"):
        module.step((torch.zeros(4, 3, 16, 16), torch.zeros(4)), "train")


def test_the_picture_has_a_row_for_each_label(labels: Any, backbone: nn.Module, make_trainer: MakeTrainer) -> None:
    module = MultiLabelClassifier(backbone)
    make_trainer(max_epochs=1).fit(module, labels)
    (axes,) = module.figures("val")["thresholds"].axes
    rows = [text.get_text() for text in axes.get_yticklabels()]
    counts = labels.targets.sum(0).int().tolist()
    assert rows == [f"{name} ({count})" for name, count in zip(labels.label_names, counts, strict=True)]
    assert axes.lines[0].get_xdata().tolist() == pytest.approx(module.thresholds.tolist())
