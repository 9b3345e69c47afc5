"""DeepSpeed's checkpoints: recognised by the names of their files, and answered with what converts them.

Layout: `latest` names a folder of `mp_rank_00_model_states.pt` and of `zero_pp_rank_0_mp_rank_00_optim_states.pt`, one
for each process, in which ZeRO keeps the weights as flat pieces; `zero_to_fp32.py` lies beside `latest`. Source:
deepspeed's runtime/engine.py (`save_checkpoint`) and utils/zero_to_fp32.py.
"""

import re
from pathlib import Path

_PART = re.compile(r"^(bf16_|fp16_)?zero_pp_rank_\d+_mp_rank_\d+_(optim|model)_states\.pt$")
_MODEL = re.compile(r"^mp_rank_\d+_model_states\.pt$")


def is_part_of_zero(name: str) -> bool:
    """Whether a file of that name holds one process' flat pieces."""
    return _PART.match(name) is not None


def how_to_convert(folder: Path) -> str:
    """What to do with a folder of DeepSpeed; "" if it is none."""
    parts = sorted(path for path in (*folder.glob("*.pt"), *folder.glob("*/*.pt")) if is_part_of_zero(path.name))
    models = sorted(path for path in (*folder.glob("*.pt"), *folder.glob("*/*.pt")) if _MODEL.match(path.name))
    if not parts and not (models and (folder / "latest").is_file()):
        return ""
    outer = folder if (folder / "latest").is_file() or not (folder.parent / "latest").is_file() else folder.parent
    command = f"`python {outer / 'zero_to_fp32.py'} {outer} OUT`"
    whole = (
        f"; for ZeRO 1 and 2 {models[0]} holds the weights in half precision, and is read as it is" if models else ""
    )
    if not parts:
        return f"{folder} is a checkpoint of DeepSpeed: give {models[0]}"
    return f"{folder} is a checkpoint of DeepSpeed's ZeRO in pieces: convert it with {command} and give OUT{whole}"
