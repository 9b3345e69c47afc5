"""`--ckpt_path` with files that people saved by hand. The network is a small one without a download."""

from pathlib import Path

import pytest
import torch
import yaml
from torch.optim import SGD
from torchvision.models import resnet18

SMALL = (
    "--data.image_size=32",
    "--data.batch_size=8",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the ImageNet example saves under DataParallel, with misspellings of its own."""
    torch.manual_seed(0)
    network = resnet18(num_classes=2)
    optimizer = SGD(network.parameters(), lr=0.01, momentum=0.9)
    network(torch.randn(2, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    weights = {f"module.{name}": value for name, value in network.state_dict().items()}
    path = tmp_path_factory.mktemp("hand") / "model_best.pth.tar"
    content = {"epoch": 1, "arch": "resnet18", "state_dict": weights, "optimizer_state_dic": optimizer.state_dict()}
    torch.save({**content, "best_acc1": 100.0}, path)
    return path


@pytest.mark.filterwarnings("ignore:TolerantRestore")
def test_fit_goes_on_from_a_file_by_hand(run, photos: Path, file: Path) -> None:
    words = ("--model.optimizer=SGD", "--model.optimizer.lr=0.01", "--model.optimizer.momentum=0.9")
    code, out, err = run(
        "fit", f"--ckpt_path={file}", f"--data.root={photos}", "--trainer.max_epochs=3", *words, *SMALL
    )
    assert code == 0, err
    assert "model_best.pth.tar" in out  # no epoch was better than what the file reached
    assert "lit-transfer predict runs/version_0/checkpoints/last.ckpt" in out
    saved = torch.load("runs/version_0/checkpoints/last.ckpt", weights_only=True)
    assert saved["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] == 3
    assert saved["global_step"] == 3 * 2  # the file counts no steps: two epochs of this run's length, and one more
    assert saved["lit_transfer_restore"]["parameter_names"][0][0][0].startswith("backbone.")
    moments = saved["optimizer_states"][0]["state"]
    assert len(moments) == 62


def test_the_moments_of_the_file_are_this_runs(run, photos: Path, file: Path) -> None:
    words = ("--model.optimizer=SGD", "--model.optimizer.momentum=0.9", "--trainer.max_epochs=2")
    with pytest.warns(
        UserWarning, match=r"not all of .*model_best.pth.tar is carried over: arch; .*lr=0.01 of the file"
    ):
        code, _, err = run("fit", f"--ckpt_path={file}", f"--data.root={photos}", *words, *SMALL)
    assert code == 0, err


def test_validate_measures_a_file_by_hand_without_other_weights(run, photos: Path, file: Path) -> None:
    code, out, err = run("validate", f"--ckpt_path={file}", f"--data.root={photos}", *SMALL)
    assert code == 0, err
    assert "val_acc" in out
    code, out, err = run("validate", f"--ckpt_path={file}", f"--data.root={photos}", *SMALL, "--print_config")
    assert yaml.safe_load(out)["model"]["init_args"]["weights"] is None


def test_a_file_of_another_network_is_one_line(run, photos: Path, file: Path) -> None:
    code, _, err = run("validate", f"--ckpt_path={file}", f"--data.root={photos}", "--model.backbone=resnet34", *SMALL)
    assert code == 2
    lines = [line for line in err.splitlines() if "error:" in line]
    assert len(lines) == 1
    assert "model_best.pth.tar does not fit" in lines[0]
    assert "ResNet" in lines[0]
