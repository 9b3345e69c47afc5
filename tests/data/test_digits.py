from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser
from torch import nn

from lit_transfer.backbones import Preprocessing
from lit_transfer.data import DigitsData


def ready(*args, **options):
    data = DigitsData(*args, **options)
    data.setup()
    return data


def indices(dataset):
    return {index for index, _ in dataset.samples}


def test_all_digits_by_default():
    data = ready()
    assert data.class_names == list("0123456789")
    sizes = [len(dataset) for dataset in (data.train_dataset, data.val_dataset, data.test_dataset)]
    assert sum(sizes) == 1797
    assert sizes[1] == sizes[2] == pytest.approx(0.2 * 1797, abs=5)


def test_a_subset_of_the_classes_is_numbered_in_the_order_given():
    data = ready([7, 3], per_class=4)
    assert (data.class_names, data.num_classes, data.class_counts) == (["7", "3"], 2, [4, 4])
    from sklearn.datasets import load_digits

    digits = load_digits().target
    assert [["7", "3"][target] for _, target in data.test_dataset.samples] == [
        str(digits[index]) for index, _ in data.test_dataset.samples
    ]


def test_validation_and_test_do_not_depend_on_how_many_train_or_on_the_other_classes():
    many, few, fewer = ready(), ready(per_class=10), ready([4, 5], per_class=5)
    assert indices(many.test_dataset) == indices(few.test_dataset) > indices(fewer.test_dataset)
    assert indices(many.val_dataset) == indices(few.val_dataset) > indices(fewer.val_dataset)
    assert indices(many.train_dataset) > indices(few.train_dataset) > indices(fewer.train_dataset)
    assert not indices(many.train_dataset) & (indices(many.val_dataset) | indices(many.test_dataset))


def test_another_seed_takes_other_training_images_even_where_all_are_for_training():
    one, other = (ready(per_class=10, seed=seed, val_fraction=0, test_fraction=0) for seed in range(2))
    assert indices(one.train_dataset) != indices(other.train_dataset)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_take_the_channels_and_the_size_asked_for(channels):
    class Trained:
        class lightning_module(nn.Module):  # noqa: N801 (stands for the attribute of a Trainer)
            preprocessing = Preprocessing(256, 224, (0.5,) * channels, (0.5,) * channels, "bicubic")

        global_rank, world_size, limit_train_batches, log_every_n_steps = 0, 1, 1.0, 50

    data = DigitsData(image_size=16, batch_size=6)
    data.trainer = Trained()
    data.setup()
    for dataset in (data.train_dataset, data.test_dataset):
        assert dataset[0][0].shape == (channels, 16, 16)
    assert data.test_dataset[0][0][0].max() > 0.8


def test_an_evaluated_digit_is_the_whole_of_it_enlarged():
    data = ready(image_size=8)
    from sklearn.datasets import load_digits

    index, _ = data.test_dataset.samples[0]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (data.preprocessing.mean, data.preprocessing.std))
    shown = data.test_dataset[0][0] * std + mean
    assert torch.allclose(shown[0], torch.from_numpy(load_digits().images[index] / 16).float(), atol=1 / 255)


def test_the_default_moves_training_digits():
    data = ready(image_size=16)
    assert not torch.equal(data.train_dataset[0, 0][0], data.train_dataset[0, 1][0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": [1]}, r"data\.classes must be at least two different digits of 0 to 9; got \[1\]"),
        ({"classes": [1, 1]}, r"data\.classes .* got \[1, 1\]"),
        ({"classes": [1, 10]}, r"data\.classes .* got \[1, 10\]"),
        ({"per_class": 0}, r"data\.per_class must be at least 1, or None for all; got 0"),
        ({"per_class": 500}, r"data\.per_class=500 asks for more training images than digit 0 has: 10\d, with"),
        ({"image_size": 0}, r"data\.image_size is in pixels, at least 1; got 0"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ready(**options)


@pytest.mark.filterwarnings("ignore:(?s).*(instantiate_classes|JsonargparseDeprecation)")
def test_arguments_come_through_a_config():
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    given = ["--data=lit_transfer.data.DigitsData", "--data.classes=[5,6]", "--data.per_class=3"]
    config = parser.parse_string(parser.dump(parser.parse_args(given)))
    data = parser.instantiate_classes(config).data
    assert (list(data.classes), data.per_class, data.batch_size) == ([5, 6], 3, 32)


def test_a_picture_of_grey_digits(tmp_path: Path):
    assert len(ready(per_class=2).plot_batch(tmp_path / "digits.pdf").axes) == 20
    assert (tmp_path / "digits.pdf").read_bytes().startswith(b"%PDF")
