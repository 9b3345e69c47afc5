import os

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure
from torch import nn
from torchvision.transforms import v2

from lit_transfer.backbones import Preprocessing
from lit_transfer.data import ImageFolderData

SMALL = Preprocessing(resize=10, crop=8, mean=(0.5,), std=(0.25,))


class Probe(LightningModule):
    """A linear classifier that remembers what it was given; a sum of pixels stands for a batch."""

    preprocessing = SMALL

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 3)
        self.seen = []

    def training_step(self, batch, batch_idx):
        images, targets = batch
        self.seen.append((self.current_epoch, images.double().sum().item(), targets.tolist()))
        loss = nn.functional.cross_entropy(self.layer(images.flatten(1)), targets)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_mean", batch[0].mean(), batch_size=len(batch[0]))

    test_step = validation_step

    def predict_step(self, batch, batch_idx):
        return batch[1]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(folder, **options):
    options = {"max_epochs": 2, "logger": False, "enable_checkpointing": False, **options}
    return Trainer(
        accelerator="cpu", default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False, **options
    )


def ready(root, **options):
    data = ImageFolderData(root, **options)
    data.setup()
    return data


def names(dataset):
    return sorted("/".join(path.parts[-2:]) for path, _ in dataset.samples)


# --- what is found ---------------------------------------------------------------------------------------------------


def test_split_folders_are_used_as_they_are(make_folder):
    data = ready(make_folder({"train/ants": 3, "train/bees": 2, "valid/ants": 1, "valid/bees": 2}))
    assert (data.class_names, data.num_classes, data.class_counts) == (["ants", "bees"], 2, [3, 2])
    assert names(data.val_dataset) == ["ants/0.png", "bees/0.png", "bees/1.png"]
    assert data.val_dataset.targets == [0, 1, 1]
    assert data.test_dataset is None


def test_missing_splits_are_made_from_train_and_told(make_folder, caplog):
    root = make_folder({"train/ants": 10, "train/bees": 20, "val/ants": 1, "val/bees": 1})
    data = ready(root, test_fraction=0.2)
    assert (data.class_counts, data.test_dataset.targets, len(data.val_dataset)) == ([8, 16], [0] * 2 + [1] * 4, 2)
    assert "train 24, val 2, test 6" in caplog.text
    assert "test is 20% of each class of train (seed 0)" in caplog.text
    assert "val is" not in caplog.text


def test_one_folder_is_split_the_same_with_the_same_seed_and_wherever_it_lies(make_folder):
    counts = {"ants": 10, "bees": 10}
    data, moved = ready(make_folder(counts)), ready(make_folder(counts, root="elsewhere"))
    assert names(data.val_dataset) == names(moved.val_dataset)
    assert names(data.val_dataset) != names(ready(make_folder(counts), seed=1).val_dataset)
    everything = names(data.train_dataset) + names(data.val_dataset)
    assert sorted(everything) == sorted(f"{name}/{n}.png" for name in counts for n in range(10))


def test_skipped_files_are_counted_once(make_folder, caplog):
    root = make_folder({"ants": 3, "bees": 3})
    (root / "ants" / "missing.gif").touch()
    data = ready(root)
    data.setup("test")
    assert caplog.text.count("skipped 1 file that is no image in a class folder: ants/missing.gif") == 1


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_broken_image_is_named_before_training(make_folder):
    root = make_folder({"ants": 3, "bees": 3})
    (root / "bees" / "1.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken image '.*bees.1\.png'.*data\.root"):
        ready(root)
    assert len(ready(root, verify=False).train_dataset) == 4


def test_an_image_that_breaks_off_is_named_when_it_is_read(make_folder):
    root = make_folder({"ants": 2, "bees": 2}, size=(90, 90))
    file = root / "bees" / "1.png"
    file.write_bytes(file.read_bytes()[:9000])
    data = ready(root, val_fraction=0, image_size=8)
    with pytest.raises(ValueError, match=r"broken image '.*bees.1\.png'"):
        list(data.train_dataloader())


def test_classes_that_differ_between_the_splits_are_named(make_folder):
    root = make_folder({"train/ants": 2, "train/bees": 2, "val/ants": 1, "val/wasps": 1})
    with pytest.raises(ValueError, match=r"data\.root .*only in train: bees; only in val: wasps"):
        ready(root)


def test_a_class_too_small_to_split_is_named(make_folder):
    root = make_folder({"ants": 5, "bees": 1})
    with pytest.raises(ValueError, match=r"class 'bees' in data\.root has 1 training image.*data\.val_fraction=0"):
        ready(root)
    assert ready(root, val_fraction=0).class_counts == [5, 1]


def test_a_share_for_test_beside_a_test_folder_is_refused(make_folder):
    root = make_folder({f"{split}/{name}": 2 for split in ("train", "test") for name in ("ants", "bees")})
    with pytest.raises(ValueError, match=r"data\.test_fraction=0\.1 .* the data holds 4 of them"):
        ready(root, test_fraction=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"data\.batch_size must be at least 1; got 0"),
        ({"num_workers": -1}, r"data\.num_workers must be at least 0, or None to choose; got -1"),
        ({"persistent_workers": True, "num_workers": 0}, r"data\.persistent_workers=True needs workers"),
        ({"augment": "trivia"}, r"data\.augment must be one of .* got 'trivia'\. Did you mean 'trivial'\?"),
        ({"image_size": 0}, r"data\.image_size is in pixels, at least 1; got 0"),
        ({"val_fraction": 1.0}, r"data\.val_fraction is .* got 1\.0"),
    ],
)
def test_wrong_arguments_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        ImageFolderData("photos", **options)


def test_testing_without_test_images_says_how_to_get_some(make_folder, tmp_path):
    data = ImageFolderData(make_folder({"ants": 5, "bees": 5}))
    with pytest.raises(
        ValueError, match=r"no test images: give data\.test_fraction .* or a folder test/ in data\.root"
    ):
        trainer(tmp_path).test(Probe(), data, verbose=False)


# --- what comes out --------------------------------------------------------------------------------------------------


def test_images_are_made_ready_for_the_module_being_trained(make_folder, tmp_path):
    data = ImageFolderData(make_folder({"ants": 5, "bees": 5}), batch_size=4)
    trainer(tmp_path, max_epochs=1).fit(Probe(), data)
    assert data.preprocessing == SMALL
    images, targets = next(iter(data.train_dataloader()))
    assert (images.shape, images.dtype, targets.dtype) == ((4, 1, 8, 8), torch.float32, torch.int64)


def test_without_a_module_images_are_made_ready_as_imagenet_was(make_folder):
    data = ready(make_folder({"ants": 5, "bees": 5}), batch_size=2)
    assert next(iter(data.val_dataloader()))[0].shape == (2, 3, 224, 224)
    assert (data.preprocessing.resize, data.preprocessing.mean) == (256, (0.485, 0.456, 0.406))


def test_the_image_size_can_be_chosen(make_folder):
    data = ready(make_folder({"ants": 5, "bees": 5}), image_size=16, batch_size=2)
    assert (data.preprocessing.resize, data.preprocessing.crop) == (18, 16)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert next(iter(loader))[0].shape == (2, 3, 16, 16)


def test_the_default_varies_the_training_images_from_epoch_to_epoch_and_no_others(make_folder):
    data = ready(make_folder({"ants": 5, "bees": 5}), image_size=8)
    assert not torch.equal(data.train_dataset[0, 0][0], data.train_dataset[0, 1][0])
    assert torch.equal(data.val_dataset[0, 0][0], data.val_dataset[0, 1][0])
    plain = ready(data.root, image_size=8, augment="none")
    assert torch.equal(plain.train_dataset[0, 0][0], plain.train_dataset[0, 1][0])


def test_a_run_repeats_itself_whatever_the_number_of_workers(make_folder, tmp_path):
    """CPU, float32, batch size 4, one thread for each worker; 0 and 2 workers."""
    root = make_folder({"ants": 8, "bees": 10})

    def run(workers):
        torch.manual_seed(workers)
        module = Probe()
        data = ImageFolderData(root, 4, num_workers=workers)
        trainer(tmp_path, max_epochs=3).fit(module, data)
        return module.seen

    alone = run(0)
    assert alone == run(2)
    assert len({total for _, total, _ in alone}) == len(alone) == 12


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
def test_resuming_at_an_epochs_end_goes_on_with_the_next_epochs_images(make_folder, tmp_path):
    """Saved after the last batch, at the end of training and after validation: the counters differ."""
    root = make_folder({"ants": 8, "bees": 8})
    module = Probe()
    trainer(tmp_path, max_epochs=4).fit(module, ImageFolderData(root, 4))
    expected = module.seen[-6:]
    steps = len(module.seen) // 4
    for number, when in enumerate(
        ({"every_n_train_steps": 2 * steps}, {"save_on_train_epoch_end": True}, {"save_on_train_epoch_end": False})
    ):
        checkpoint = ModelCheckpoint(tmp_path / str(number), filename="saved", **when)
        trainer(tmp_path, max_epochs=2, callbacks=[checkpoint], enable_checkpointing=True).fit(
            Probe(), ImageFolderData(root, 4)
        )
        for workers in (0, 2):
            module = Probe()
            data = ImageFolderData(root, 4, num_workers=workers)
            trainer(tmp_path, max_epochs=4).fit(module, data, ckpt_path=checkpoint.best_model_path)
            assert module.seen == expected, (when, workers)


def test_prediction_takes_the_test_images_or_else_those_of_validation(make_folder, tmp_path):
    root = make_folder({"ants": 5, "bees": 10})
    answers = trainer(tmp_path).predict(Probe(), ImageFolderData(root, 2, val_fraction=0.2))
    assert torch.cat(answers).tolist() == [0, 1, 1]
    answers = trainer(tmp_path).predict(Probe(), ImageFolderData(root, 2, test_fraction=0.4))
    assert torch.cat(answers).tolist() == [0, 0, 1, 1, 1, 1]
    with pytest.raises(ValueError, match=r"neither test nor validation images .* data\.val_fraction"):
        trainer(tmp_path).predict(Probe(), ImageFolderData(root, val_fraction=0))


def test_training_without_validation_images(make_folder, tmp_path):
    module = Probe()
    trainer(tmp_path, max_epochs=1).fit(module, ImageFolderData(make_folder({"a": 3, "b": 3}), val_fraction=0))
    assert len(module.seen) == 1


# --- quiet and in good order in a plain Trainer -----------------------------------------------------------------------


def test_lightning_has_nothing_to_warn_of_on_a_machine_with_many_cores(make_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    fit = trainer(tmp_path, max_epochs=1, logger=CSVLogger(tmp_path))
    data = ImageFolderData(make_folder({"ants": 70, "bees": 70}), batch_size=4)
    fit.fit(Probe(), data)  # warnings are errors here
    assert fit.log_every_n_steps == len(data.train_dataloader()) == 28
    assert data.train_dataloader().num_workers == 4
    assert data.train_dataloader().persistent_workers
    few = ImageFolderData(make_folder({"ants": 10, "bees": 10}, root="few"))
    trainer(tmp_path, max_epochs=1).fit(Probe(), few)
    assert (few.train_dataloader().num_workers, few.train_dataloader().persistent_workers) == (0, False)


def test_the_log_interval_is_lowered_to_what_an_epoch_has_and_never_raised(make_folder, tmp_path):
    root = make_folder({"ants": 10, "bees": 10})
    for given, limit, expected in ((50, 1.0, 4), (50, 3, 3), (2, 1.0, 2)):
        fit = trainer(tmp_path, max_epochs=1, log_every_n_steps=given, limit_train_batches=limit)
        fit.fit(Probe(), ImageFolderData(root, 4))
        assert fit.log_every_n_steps == expected


def test_overfitting_on_few_batches_works(make_folder, tmp_path):
    module = Probe()
    data = ImageFolderData(make_folder({"ants": 10, "bees": 10}), 4, augment="none")
    with pytest.warns(UserWarning, match="requested to overfit"):
        trainer(tmp_path, overfit_batches=1).fit(module, data)
    assert len({total for _, total, _ in module.seen}) == 1


# --- on the command line ---------------------------------------------------------------------------------------------


def parsed(*arguments):
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    config = parser.parse_args([f"--data={ImageFolderData.__module__}.ImageFolderData", *arguments])
    again = parser.parse_string(parser.dump(config))
    return parser.instantiate_classes(again).data  # `instantiate` exists since jsonargparse 4.49 only


@pytest.mark.filterwarnings("ignore:(?s).*(instantiate_classes|JsonargparseDeprecation)")
def test_every_argument_comes_through_a_config():
    data = parsed("--data.root=photos", "--data.augment=trivial", "--data.num_workers=2", "--data.image_size=64")
    assert (data.root.name, data.augment, data.num_workers, data.image_size) == ("photos", "trivial", 2, 64)


@pytest.mark.filterwarnings("ignore:(?s).*(instantiate_classes|JsonargparseDeprecation)")
def test_a_free_transform_comes_through_a_config():
    flip = '{"class_path": "torchvision.transforms.v2.RandomVerticalFlip", "init_args": {"p": 0.3}}'
    data = parsed("--data.root=photos", f"--data.augment={flip}")
    assert data.augment.p == 0.3
    assert isinstance(data.augment, v2.RandomVerticalFlip)


# --- equally many of each class --------------------------------------------------------------------------------------


def test_balanced_sampling_shows_a_rare_class_as_often_as_others(make_folder, caplog):
    folder = make_folder({"ants": 4, "bees": 20})
    data = ImageFolderData(folder, 4, image_size=8, sampling="balanced", val_fraction=0.25, num_workers=0)
    data.setup()
    targets = torch.cat([targets for _, targets in data.train_dataloader()]).tolist()
    assert data.class_counts == [3, 15]
    assert (len(targets), targets.count(0)) == (18, 9)
    assert "balanced: each class comes 9 times in an epoch" in caplog.text
    assert [target for _, targets in data.val_dataloader() for target in targets.tolist()] == [0] + [1] * 5


def test_a_wrong_name_of_sampling_or_augmentation_is_refused_with_the_nearest(make_folder):
    with pytest.raises(ValueError, match=r"data.sampling must be one of \('shuffle', 'balanced'\).*mean 'balanced'"):
        ImageFolderData("photos", sampling="balance")
    with pytest.raises(ValueError, match=r"data.augment must be one of .*Did you mean 'rand'"):
        ImageFolderData("photos", augment="randaugment")


# --- a picture -------------------------------------------------------------------------------------------------------


def test_a_picture_of_a_batch_shows_the_images_and_their_classes(make_folder, tmp_path):
    data = ImageFolderData(make_folder({"ants": 5, "bees": 5}), 5, image_size=8, augment="none", val_fraction=0)
    figure = data.plot_batch(tmp_path / "batch.png")
    assert isinstance(figure, Figure)
    assert (tmp_path / "batch.png").stat().st_size > 1000
    images, targets = next(iter(data.train_dataloader()))
    assert [axes.get_title() for axes in figure.axes] == [data.class_names[target] for target in targets]
    shown = torch.as_tensor(figure.axes[0].images[0].get_array().filled())
    mean, std = torch.tensor(data.preprocessing.mean), torch.tensor(data.preprocessing.std)
    assert torch.allclose((shown - mean) / std, images[0].permute(1, 2, 0), atol=1e-5)
    with pytest.raises(ValueError, match="no test images to plot"):
        data.plot_batch(split="test")


# --- real photos -----------------------------------------------------------------------------------------------------


def test_the_ants_and_bees_of_the_tutorial(real, caplog):
    data = ready(real / "data" / "hymenoptera_data")
    assert (data.class_names, data.class_counts) == (["ants", "bees"], [123, 121])
    assert len(data.val_dataset) == 153
    assert "skipped 1 file that is no image in a class folder: train/ants/imageNotFound.gif" in caplog.text
    images, targets = next(iter(data.val_dataloader()))
    assert images.shape == (32, 3, 224, 224)
    assert targets.tolist() == [0] * 32
