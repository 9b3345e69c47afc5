"""Mixup, cutmix and focal loss, as the classifiers are told to use them. Resumed: test_exact_resume."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor, nn

from lit_transfer.callbacks import FeatureCaching, FinetuningSchedule
from lit_transfer.modules import ImageClassifier, MultiLabelClassifier
from lit_transfer.modules._losses import ClassLoss, LabelFocalLoss
from lit_transfer.modules._mixing import Mixing

MakeTrainer = Callable[..., Trainer]


def black_and_white(count: int = 8) -> tuple[Tensor, Tensor]:
    """Images of an even 0 or 1, which is their class too."""
    target = torch.arange(count) % 2
    return target.view(-1, 1, 1, 1).expand(-1, 3, 16, 16).float(), target


@pytest.mark.parametrize(("mixup", "cutmix"), [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_an_image_has_as_much_of_a_class_as_its_target_says(mixup: float, cutmix: float) -> None:
    torch.manual_seed(0)
    mixing, kinds = Mixing(mixup, cutmix), set()
    images, target = black_and_white()
    for _ in range(20):
        mixed, shares = mixing(images, target, 3)
        assert shares.shape == (8, 3)
        torch.testing.assert_close(shares.sum(1), torch.ones(8))
        torch.testing.assert_close(mixed.mean((1, 2, 3)), shares[:, 1])
        kinds.add("cutmix" if ((mixed == 0) | (mixed == 1)).all() else "mixup")
    assert kinds == {name for name, alpha in (("mixup", mixup), ("cutmix", cutmix)) if alpha}
    assert torch.equal(images, black_and_white()[0])  # the batch itself stays as it is


def test_labels_are_mixed_in_each_column() -> None:
    images, target = black_and_white()
    labels = torch.stack([target, 1 - target], 1).float()
    mixed, shares = Mixing(1.0, 0.0)(images, labels, 2)
    torch.testing.assert_close(mixed.mean((1, 2, 3)), shares[:, 0])


def test_without_either_nothing_is_drawn_or_changed() -> None:
    images, target = black_and_white()
    state = torch.get_rng_state()
    assert Mixing(0.0, 0.0)(images, target, 2) == (images, target)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("cls", [ImageClassifier, MultiLabelClassifier])
def test_training_alone_is_mixed(
    cls: Any, data: LightningDataModule, labels: LightningDataModule, backbone: nn.Module, make_trainer: MakeTrainer
) -> None:
    own = data if cls is ImageClassifier else labels
    module = cls(backbone, mixup=0.5, cutmix=1.0, optimizer=lambda groups: torch.optim.AdamW(groups, lr=3e-2))
    whole: dict[bool, list[bool]] = {True: [], False: []}
    made = module.configure_loss

    def configure_loss() -> nn.Module:
        loss = made()
        loss.register_forward_hook(
            lambda _, args, out: whole[module.training].append(bool((args[1] == args[1].round()).all()))
        )
        return loss

    module.configure_loss = configure_loss
    trainer = make_trainer(max_epochs=12)
    torch.manual_seed(0)
    trainer.fit(module, own)
    assert not all(whole[True])
    assert all(whole[False])
    score = trainer.validate(module, own, verbose=False)[0]
    assert score["val_acc" if cls is ImageClassifier else "val_map"] > 0.8


def test_weights_and_smoothing_enter_the_loss_of_mixed_images(backbone: nn.Module) -> None:
    module = ImageClassifier(
        backbone, num_classes=2, mixup=1.0, class_weights=[1.0, 4.0], label_smoothing=0.1, loss="focal", focal_gamma=1.0
    )
    nn.init.normal_(module.head.weight)
    images, target = black_and_white()
    torch.manual_seed(3)
    loss = module.step((images, target), "train")
    torch.manual_seed(3)
    mixed, shares = Mixing(1.0, 0.0)(images, target, 2)
    expected = ClassLoss(weight=torch.tensor([1.0, 4.0]), label_smoothing=0.1, focal_gamma=1.0)
    torch.testing.assert_close(loss, expected(module(mixed), shares))


def test_mixed_images_cannot_be_cached_but_computed_faster(
    data: LightningDataModule, backbone: nn.Module, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    callbacks = [FinetuningSchedule("linear_probe"), FeatureCaching(folder=tmp_path)]
    with pytest.raises(ValueError, match=r"\(mixup and cutmix do\).*mixup=0, cutmix=0.*views=0"):
        make_trainer(callbacks=callbacks).fit(ImageClassifier(backbone, mixup=0.2), data)
    callbacks = [FinetuningSchedule("linear_probe"), FeatureCaching(views=0, folder=tmp_path)]
    make_trainer(callbacks=callbacks).fit(ImageClassifier(backbone, mixup=0.2), data)


@pytest.mark.parametrize("cls", [ImageClassifier, MultiLabelClassifier])
def test_focal_loss_is_trained_with_and_saved(
    cls: Any, data: LightningDataModule, labels: LightningDataModule, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    weights = {"class_weights": "balanced"} if cls is ImageClassifier else {"pos_weight": "balanced"}
    module = cls("resnet18", None, input_size=32, loss="focal", focal_gamma=1.5, **weights)
    trainer = make_trainer(max_epochs=1)
    trainer.fit(module, data if cls is ImageClassifier else labels)
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    loss = cls.load_from_checkpoint(tmp_path / "saved.ckpt", weights_only=True).loss
    assert type(loss) is (ClassLoss if cls is ImageClassifier else LabelFocalLoss)
    assert (loss.focal_gamma if cls is ImageClassifier else loss.gamma) == 1.5
    name, value = next(iter(module.loss.state_dict().items()))
    assert torch.equal(loss.state_dict()[name], value)


@pytest.mark.parametrize("cls", [ImageClassifier, MultiLabelClassifier])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"mixup": -0.1}, r"mixup=-0.1: expected the parameter alpha"),
        ({"cutmix": float("nan")}, r"cutmix=nan: expected the parameter alpha"),
        ({"loss": "focla"}, r"loss='focla' is unknown; known are"),
        ({"focal_gamma": -1.0}, r"focal_gamma=-1.0: expected a number of at least 0"),
    ],
)
def test_what_is_out_of_range_is_refused(cls: Any, arguments: Any, said: str, backbone: nn.Module) -> None:
    with pytest.raises(ValueError, match=said):
        cls(backbone, **arguments)
