"""`--gpus N`: the emptiest GPUs become the Trainer's devices, the same ones in every process of the run."""

import os
import sys
from collections.abc import Mapping
from typing import Any

from lit_transfer.devices import emptiest_gpus

__all__ = ["trainer_devices"]

# Lightning starts the other ranks with the same command line; what is free has changed by then.
_CHOSEN = "LIT_TRANSFER_GPUS"


def trainer_devices(count: int | None, trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the Trainer's arguments for `--gpus count`; none of them where there is no GPU, which is told.

    Args:
        count: What was asked for; nothing is done if None.
        trainer: The Trainer's arguments as configured.

    Raises:
        ValueError: Devices were chosen in another way too, or there are fewer GPUs.
    """
    if count is None:
        return {}
    for name, free in (("devices", ("auto", None)), ("accelerator", ("auto", "gpu", "cuda", None))):
        if trainer.get(name) not in free:
            raise ValueError(f"--gpus {count} and --trainer.{name}={trainer[name]} both choose devices: give one.")
    if chosen := os.environ.get(_CHOSEN):
        return {"accelerator": "gpu", "devices": [int(index) for index in chosen.split(",")]}
    if "LOCAL_RANK" in os.environ:
        raise ValueError(f"--gpus {count}: a launcher has given each process its GPU already; leave --gpus out.")
    gpus = emptiest_gpus(count)
    if not gpus:
        print(f"--gpus {count}: no GPU is visible here; going on without one.", file=sys.stderr)
        return {}
    os.environ[_CHOSEN] = ",".join(map(str, gpus))
    print(f"--gpus {count}: the emptiest: {', '.join(map(str, gpus))}.", file=sys.stderr)
    return {"accelerator": "gpu", "devices": gpus}
