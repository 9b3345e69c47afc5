"""Building models without memory."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

__all__ = ["EmptyTensorsOnMeta"]


class EmptyTensorsOnMeta(TorchFunctionMode):
    """Inside, `torch.empty` makes tensors on the meta device, so that layers take no memory and are not initialised.

    Under `torch.device("meta")` a model that computes its own shape with tensors (RegNet) cannot be built; here they
    are real. What was not made by `torch.empty` (class tokens) is small; `.to("meta")` moves it afterwards.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)
