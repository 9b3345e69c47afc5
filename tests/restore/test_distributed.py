"""Folders of shards, written by torch.distributed.checkpoint in one process; by several: test_tolerant_restore_ddp."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed import checkpoint as dcp

from lit_transfer.restore import ENTRY, gather_folder, is_distributed_folder
from lit_transfer.weights import WeightsError


class Payload:
    """Code that runs when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def write(folder: Path, **more: Any) -> dict[str, Any]:
    network = nn.Linear(3, 2)
    moments = {
        name: {"exp_avg": torch.randn_like(p), "step": torch.tensor(4.0)} for name, p in network.named_parameters()
    }
    optimizer = {"state": moments, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99), "params": ["bias", "weight"]}]}
    state = {"state_dict": network.state_dict(), "optimizer_0": optimizer, **more}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.save(state, checkpoint_id=folder, no_dist=True)
    torch.save({"epoch": 2, "global_step": 7, "hparams": {"lr": 0.1}}, folder / "meta.pt")
    return state


def test_a_folder_becomes_a_checkpoint_of_one_process(tmp_path: Path) -> None:
    written = write(tmp_path / "folder")
    assert is_distributed_folder(tmp_path / "folder")
    found = gather_folder(tmp_path / "folder")
    assert (found["epoch"], found["global_step"], found["hparams"]) == (2, 7, {"lr": 0.1})
    assert all(torch.equal(value, written["state_dict"][name]) for name, value in found["state_dict"].items())
    (optimizer,) = found["optimizer_states"]
    assert optimizer["param_groups"] == written["optimizer_0"]["param_groups"]
    for name, moments in written["optimizer_0"]["state"].items():
        assert torch.equal(optimizer["state"][name]["exp_avg"], moments["exp_avg"])
    assert found[ENTRY] == {"parameter_names": [[["bias", "weight"]]]}


def test_optimizers_keep_their_order(tmp_path: Path) -> None:
    more = {f"optimizer_{n}": {"state": {}, "param_groups": [{"lr": float(n), "params": []}]} for n in range(1, 12)}
    write(tmp_path / "folder", **more)
    found = gather_folder(tmp_path / "folder")["optimizer_states"]
    assert [state["param_groups"][0]["lr"] for state in found] == [0.1, *map(float, range(1, 12))]


def test_code_in_the_records_does_not_run(tmp_path: Path) -> None:
    write(tmp_path / "folder")
    (tmp_path / "folder/.metadata").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    with pytest.raises(WeightsError, match=r"names pathlib\.Path\.?\w*"):
        gather_folder(tmp_path / "folder")
    assert not (tmp_path / "ran").exists()


def test_code_in_a_value_does_not_run(tmp_path: Path) -> None:
    write(tmp_path / "folder", extra=Payload(tmp_path / "ran"))
    with pytest.raises(WeightsError, match="cannot be read"):
        gather_folder(tmp_path / "folder")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_a_damaged_folder_is_one_error(tmp_path: Path, name: str) -> None:
    write(tmp_path / "folder")
    content = (tmp_path / "folder" / name).read_bytes()
    (tmp_path / "folder" / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match="folder cannot be read"):
        gather_folder(tmp_path / "folder")


def test_other_folders_are_none(tmp_path: Path) -> None:
    assert not is_distributed_folder(tmp_path)
    assert not is_distributed_folder(tmp_path / "nowhere")
