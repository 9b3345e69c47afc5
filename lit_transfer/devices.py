"""Which GPUs have room: asked of CUDA itself, so that the numbers are those that torch and Lightning use."""

from __future__ import annotations

import json
import subprocess
import sys

import torch

__all__ = ["emptiest_gpus", "free_gpu_memory"]

# A GPU that cannot be opened (taken in exclusive mode, or failed) has no room and is left out.
_ASK = """
import json, torch
free = {}
for index in range(torch.cuda.device_count()):
    try:
        free[index] = torch.cuda.mem_get_info(index)[0]
    except RuntimeError:
        pass
print(json.dumps(free))
"""


def emptiest_gpus(n: int = 1) -> list[int]:
    """Choose the GPUs with the most free memory.

    For example `Trainer(devices=emptiest_gpus(2) or "auto")`, which trains on the CPU where there is no GPU. What is
    free now may be taken a moment later: nothing is reserved.

    Args:
        n: How many GPUs.

    Returns:
        Their indices, the emptiest first, as torch and Lightning number them in this process: within
        `CUDA_VISIBLE_DEVICES` and in the order of `CUDA_DEVICE_ORDER`. Empty where there is no GPU.

    Raises:
        ValueError: `n` is no positive number, or there are fewer GPUs than that.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n is the number of GPUs, 1 or more; got {n!r}.")
    if not torch.cuda.device_count():  # unlike is_available, it leaves CUDA alone where NVML can tell
        return []
    free = free_gpu_memory()
    if n > len(free):
        room = ", ".join(f"{index} ({size / 2**30:.1f} GiB free)" for index, size in free.items())
        raise ValueError(
            f"{n} GPUs were asked for, and {len(free)} can be used here: {room or 'none'}. Ask for fewer, or look at "
            "CUDA_VISIBLE_DEVICES and at what runs on the others."
        )
    return sorted(free, key=lambda index: (-free[index], index))[:n]


def free_gpu_memory() -> dict[int, int]:
    """Return the free memory in bytes of each visible GPU that can be used, by its index in this process.

    CUDA numbers the visible devices by its own rules (order, UUIDs, MIG), which NVML does not know; asking CUDA opens
    a context of some hundred MiB on each of them. So a process of its own asks, which has the same environment and
    then is gone; and this one, where it uses CUDA already, stays able to fork.

    Raises:
        RuntimeError: The process that asks failed; its own words are given.
    """
    answer = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, check=False)
    if answer.returncode:
        reason = (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise RuntimeError(f"The free memory of the GPUs could not be read: {reason}")
    return {int(index): free for index, free in json.loads(answer.stdout.splitlines()[-1]).items()}
