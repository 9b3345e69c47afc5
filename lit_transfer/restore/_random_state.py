"""The state of every random generator that a training draws from: Python's, numpy's, torch's, and the device's."""

import random
from typing import Any

import numpy as np
import torch


def capture_random_state(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Give the state of the generators of this process, as plain values that `torch.load(weights_only=True)` reads.

    Args:
        device: The device whose generator counts beside those of the CPU; "cpu" for none.
    """
    version, words, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002  # what datasets and transforms draw from
    kind = torch.device(device).type
    return {
        "python": [version, torch.tensor(words), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys, np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "device": None if kind == "cpu" else [kind, _device_state(torch.device(device))],
    }


def restore_random_state(state: dict[str, Any], device: torch.device | str = "cpu") -> bool:
    """Put the generators of this process into a state that `capture_random_state` gave.

    Args:
        state: The state.
        device: The device whose generator counts beside those of the CPU.

    Returns:
        Whether all were restored: the generator of a device is left alone if the state is of another kind of device.
    """
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002  # as above
    torch.set_rng_state(state["torch"].cpu())
    device = torch.device(device)
    saved = state["device"]
    if saved is not None and saved[0] == device.type:
        _set_device_state(device, saved[1].cpu())
        return True
    return saved is None and device.type == "cpu"


def _device_state(device: torch.device) -> torch.Tensor:
    module: Any = torch.get_device_module(device)
    state: torch.Tensor = module.get_rng_state() if device.type == "mps" else module.get_rng_state(device)
    return state.cpu()


def _set_device_state(device: torch.device, state: torch.Tensor) -> None:
    module: Any = torch.get_device_module(device)
    if device.type == "mps":
        module.set_rng_state(state)
    else:
        module.set_rng_state(state, device)
