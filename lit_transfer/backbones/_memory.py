"""Building models without memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

__all__ = ["without_memory_on_meta"]

_P = ParamSpec("_P")
_FILLING = {
    getattr(torch.Tensor, name) for name in ("normal_", "uniform_", "fill_", "zero_", "erfinv_", "mul_", "add_")
}


def without_memory_on_meta(build: Callable[_P, nn.Module], *args: _P.args, **kwargs: _P.kwargs) -> nn.Module:
    """Call a function that builds a model; under `torch.device("meta")` all of the model is there.

    A model that computes its own shape with tensors (RegNet) cannot be built under that context alone: its numbers
    have no values there.
    """
    if torch.get_default_device().type != "meta":
        return build(*args, **kwargs)
    with torch.device("cpu"), _EmptyTensorsOnMeta():
        model = build(*args, **kwargs)
    return model.to("meta")


class _EmptyTensorsOnMeta(TorchFunctionMode):
    """Inside, `torch.empty` makes tensors on the meta device, so that layers take no memory and are not initialised.

    What is made in other ways is real; class tokens and the like are small.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        if func in _FILLING and args[0].is_meta:
            return args[0]  # torch computes the shape of each random fill in Python: most of the time
        return func(*args, **kwargs)
