import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch import nn
from torchvision.models import resnet18

from lit_transfer import WeightsError, load_predictor
from lit_transfer.backbones import Preprocessing
from lit_transfer.callbacks import TolerantRestore
from lit_transfer.data import ImageFolderData
from lit_transfer.modules import ImageClassifier
from lit_transfer.predictor import Predictor


@pytest.fixture(scope="module")
def checkpoint(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = ImageClassifier("resnet18", weights=None, backbone_lr_factor=1.0)
    trainer.fit(module, ImageFolderData(photos, batch_size=4, image_size=32, augment="none"))
    trainer.save_checkpoint(folder / "best.ckpt")
    return folder / "best.ckpt"


def test_one_photo_gets_one_answer(checkpoint: Path, photos: Path) -> None:
    answer = load_predictor(checkpoint)(photos / "val" / "red" / "0.png")
    assert answer.label == "red"
    assert list(answer.probabilities) == ["blue", "red"]


def test_the_preprocessing_is_the_datas(checkpoint: Path) -> None:
    assert load_predictor(checkpoint).module.preprocessing.crop == 32


def test_every_kind_of_image_gets_the_same_answer(checkpoint: Path, photos: Path) -> None:
    predictor = load_predictor(str(checkpoint), device="cpu")
    path = photos / "val" / "blue" / "1.png"
    image = Image.open(path).convert("RGB")
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    expected = predictor(path)
    assert [predictor(kind) for kind in (str(path), image, array, array / 255.0, tensor)] == [expected] * 5
    for answer in predictor([path, image, tensor]):  # a batch of three rounds otherwise than a batch of one
        assert answer.probabilities == pytest.approx(expected.probabilities, abs=1e-6)
    assert predictor(tensor.unsqueeze(0)) == [expected]


def test_a_folder_gets_a_list_in_order(checkpoint: Path, photos: Path) -> None:
    predictor = load_predictor(checkpoint, batch_size=3)
    answers = predictor(photos / "val")
    assert [answer.label for answer in answers] == ["blue"] * 4 + ["red"] * 4


def test_gives_what_the_trainer_predicts(checkpoint: Path, photos: Path) -> None:
    """The same batches of 4, float32, CPU."""
    predictor = load_predictor(checkpoint, device="cpu", batch_size=4)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    data = ImageFolderData(photos, batch_size=4, image_size=32, augment="none")
    rows = torch.cat(trainer.predict(predictor.module, data))
    answers = [list(answer.probabilities.values()) for answer in predictor(photos / "val")]
    assert torch.allclose(torch.tensor(answers), rows, rtol=0, atol=1e-5)


def test_nothing_is_recorded_for_backward(checkpoint: Path) -> None:
    predictor = load_predictor(checkpoint)
    assert not predictor.module.training
    assert not predictor.outputs(torch.zeros(1, 3, 32, 32)).requires_grad


def test_bad_input_is_named(checkpoint: Path, tmp_path: Path) -> None:
    predictor = load_predictor(checkpoint)
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        predictor(tmp_path / "nowhere.jpg")
    with pytest.raises(ValueError, match=r"empty' holds no image"):
        predictor(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"torn\.jpg"):
        predictor(tmp_path / "torn.jpg")
    with pytest.raises(ValueError, match=r"values from 0 to 1, got -2 to 3"):
        predictor(torch.tensor([-2.0, 3.0]).expand(3, 4, 2))
    with pytest.raises(ValueError, match=r"got the shape \(5, 4, 4\)"):
        predictor(torch.zeros(5, 4, 4))


def test_a_damaged_checkpoint_is_named(checkpoint: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn.ckpt"
    torn.write_bytes(checkpoint.read_bytes()[:100_000])
    with pytest.raises(WeightsError, match=r"torn\.ckpt"):
        load_predictor(torn)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.ckpt"):
        load_predictor(tmp_path / "nowhere.ckpt")


def test_a_foreign_checkpoint_says_what_it_lacks(tmp_path: Path) -> None:
    torch.save({"state_dict": {"fc.weight": torch.zeros(2, 2)}}, tmp_path / "foreign.pth")
    with pytest.raises(
        WeightsError, match=r"foreign\.pth is no checkpoint of a TransferModule.*module=ImageClassifier"
    ):
        load_predictor(tmp_path / "foreign.pth")


def quiet(**arguments: Any) -> Trainer:
    return Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, **arguments)


def test_a_file_by_hand_gives_what_the_trainer_predicts_from_it(photos: Path, tmp_path: Path) -> None:
    """The same batches of 4, float32, CPU; a file from DataParallel into a module that was never trained here."""
    upstream = resnet18(num_classes=2)
    saved = {f"module.{name}": value for name, value in upstream.state_dict().items()}
    torch.save({"epoch": 3, "model_state_dict": saved}, tmp_path / "hand.pth.tar")

    def fresh() -> ImageClassifier:
        return ImageClassifier("resnet18", weights=None, num_classes=2, input_size=32)

    predictor = load_predictor(tmp_path / "hand.pth.tar", device="cpu", batch_size=4, module=fresh())
    data = ImageFolderData(photos, batch_size=4, image_size=32, augment="none")
    rows = torch.cat(quiet(callbacks=[TolerantRestore()]).predict(fresh(), data, ckpt_path=tmp_path / "hand.pth.tar"))
    answers = [list(answer.probabilities.values()) for answer in predictor(photos / "val")]
    assert torch.allclose(torch.tensor(answers), rows, rtol=0, atol=1e-5)


def test_any_module_with_its_preprocessing(photos: Path, tmp_path: Path) -> None:
    upstream = resnet18(num_classes=3).eval()
    torch.save(upstream, tmp_path / "whole.pth")
    with pytest.raises(ValueError, match="ResNet does not say how images are made ready for it: give preprocessing="):
        load_predictor(tmp_path / "whole.pth", module=resnet18(num_classes=3))
    preprocessing = Preprocessing(resize=32, crop=32, mean=(0.5,) * 3, std=(0.25,) * 3)
    module = resnet18(num_classes=3)
    predictor = load_predictor(tmp_path / "whole.pth", "cpu", module=module, preprocessing=preprocessing)
    images = torch.rand(2, 3, 32, 32)
    assert torch.allclose(predictor.outputs(images), upstream(images), rtol=0, atol=1e-5)
    assert len(predictor(photos / "val" / "red" / "0.png")) == 3


def test_a_file_that_does_not_fill_the_head_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": resnet18(num_classes=3).state_dict()}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"other.pth does not fill head.weight, head.bias"):
        load_predictor(tmp_path / "other.pth", module=ImageClassifier("resnet18", weights=None, num_classes=2))


def test_the_checkpoint_may_move(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    moved = shutil.copy(checkpoint, tmp_path / "elsewhere.ckpt")
    path = photos / "val" / "red" / "2.png"
    assert load_predictor(moved)(path) == load_predictor(checkpoint)(path)


class Corners(nn.Module):
    """Answers with the sum of red in the left half and in the right half, and the size that it saw."""

    preprocessing = Preprocessing(resize=8, crop=4, mean=(0.0,) * 3, std=(1.0,) * 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[-2:] == (4, 4)
        half = [images[:, 0, :, part].mean((1, 2)) for part in (slice(0, 2), slice(2, 4))]
        return torch.stack([*half, torch.full_like(half[0], images.shape[-1])], 1)


def test_views_are_averaged_and_are_what_they_are_called() -> None:
    image = torch.zeros(3, 8, 12)
    image[0, :, 8:] = 1.0  # the last third, of which the centre crop (columns 4 to 7) sees nothing
    answers = {tta: Predictor(Corners(), tta=tta)(image) for tta in (None, "flip", "crops")}
    assert answers[None] == [0.0, 0.0, 4.0]
    assert answers["flip"] == [0.0, 0.0, 4.0]
    assert answers["crops"] == pytest.approx([0.4, 0.4, 4.0])  # two corners of five are red, mirrored or not
    image[0, :, 6:] = 1.0
    assert Predictor(Corners())(image) == [0.0, 1.0, 4.0]
    flipped = Predictor(Corners(), tta="flip")
    assert flipped(image) == flipped(image.flip(-1)) == [0.5, 0.5, 4.0]
    several = torch.stack([image, torch.zeros_like(image)])
    assert Predictor(Corners(), batch_size=1, tta="crops")(several) == Predictor(Corners(), tta="crops")(several)


def test_probabilities_are_averaged_and_not_logits(checkpoint: Path, photos: Path) -> None:
    """Float32, CPU, batches of one."""
    paths = [photos / "val" / "red" / "0.png", photos / "val" / "blue" / "0.png"]
    plain, views = load_predictor(checkpoint, "cpu"), load_predictor(checkpoint, "cpu", tta="flip")
    for path in paths:
        image = Image.open(path).convert("RGB")
        mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        mean = {n: (plain(image).probabilities[n] + plain(mirrored).probabilities[n]) / 2 for n in plain.class_names}
        assert views(image).probabilities == pytest.approx(mean, abs=1e-4)
    with pytest.raises(ValueError, match="tta='flips' is unknown; expected 'flip' or 'crops', or None"):
        load_predictor(checkpoint, tta="flips")
