"""What training can be asked for by one flag each, on the command line."""

from pathlib import Path

import pytest
import yaml

from lit_transfer.heads import AttentionHead
from lit_transfer.modules import ImageClassifier

SMALL = (
    "--model.backbone=resnet18",
    "--model.weights=null",
    "--data.image_size=32",
    "--data.batch_size=8",
    "--data.num_workers=0",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.enable_progress_bar=false",
)
OPTIONS = {
    "model": {"head": "attention", "mixup": 0.2, "cutmix": 1.0, "loss": "focal", "label_smoothing": 0.1},
    "data": {"sampling": "balanced", "augment": "trivial"},
}


def test_each_is_a_flag_and_stands_in_the_config_and_the_checkpoint(run, photos: Path) -> None:
    flags = [f"--{key}.{name}={value}" for key, options in OPTIONS.items() for name, value in options.items()]
    code, _, err = run("fit", f"--data.root={photos}", *SMALL, *flags)
    assert code == 0, err
    config = yaml.safe_load(Path("runs/version_0/config.yaml").read_text())
    for key, options in OPTIONS.items():
        assert {name: config[key]["init_args"][name] for name in options} == options
    module = ImageClassifier.load_from_checkpoint("runs/version_0/checkpoints/best.ckpt")
    assert isinstance(module.head, AttentionHead)
    assert {name: module.hparams[name] for name in OPTIONS["model"]} == OPTIONS["model"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("--model.loss=focla", "--model.loss must be Literal['cross_entropy', 'focal'], got 'focla'. Nearest: focal."),
        ("--model.head=attenton", "got 'attenton'. Nearest: attention."),
        ("--model.mixup=-1", "mixup=-1.0: expected the parameter alpha"),
        ("--data.sampling=balance", "got 'balance'. Nearest: balanced."),
        ("--model.cutmx=1", "--model.cutmx is no option. Nearest: cutmix"),
    ],
)
def test_a_wrong_value_is_one_line_with_the_nearest(run, photos: Path, wrong: str, said: str) -> None:
    code, _, err = run("fit", f"--data.root={photos}", *SMALL, wrong)
    assert code == 2
    assert said in err.splitlines()[-1]
