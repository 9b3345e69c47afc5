"""DeepSpeed's folders are answered with the command that converts them."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lit_transfer.weights import WeightsError, load_weights, open_checkpoint

PIECES = "zero_pp_rank_0_mp_rank_00_optim_states.pt"


def write(folder: Path, *names: str) -> Path:
    (folder / "global_step7").mkdir(parents=True)
    (folder / "latest").write_text("global_step7")
    for name in names:
        content = {"module": nn.Linear(2, 2).half().state_dict(), "ds_version": "0.15"}
        torch.save(content, folder / "global_step7" / name)
    return folder


@pytest.mark.parametrize("kind", ["", "bf16_", "fp16_"])
def test_zero_is_answered_with_its_own_command(tmp_path: Path, kind: str) -> None:
    folder = write(tmp_path / "run", kind + PIECES, "mp_rank_00_model_states.pt")
    command = f"`python {folder / 'zero_to_fp32.py'} {folder} OUT`"
    for given in (folder, folder / "global_step7", folder / "global_step7" / (kind + PIECES)):
        with pytest.raises(WeightsError) as caught:
            open_checkpoint(given)
        assert command in str(caught.value)
        assert "ZeRO 1 and 2" in str(caught.value)


def test_the_whole_weights_of_zero_1_and_2_are_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", PIECES, "mp_rank_00_model_states.pt")
    model = nn.Linear(2, 2)
    assert load_weights(model, folder / "global_step7/mp_rank_00_model_states.pt").key == "module"


def test_without_zero_the_file_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", "mp_rank_00_model_states.pt")
    with pytest.raises(WeightsError, match=r"checkpoint of DeepSpeed: give .*mp_rank_00_model_states\.pt"):
        open_checkpoint(folder)


def test_pieces_that_are_alone_still_say_what_they_are(tmp_path: Path) -> None:
    torch.save({"optimizer_state_dict": {}}, tmp_path / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    with pytest.raises(WeightsError, match=r"zero_to_fp32\.py"):
        open_checkpoint(tmp_path / "zero_pp_rank_0_mp_rank_00_model_states.pt")
