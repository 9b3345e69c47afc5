"""Lightning's warning about modules in eval mode, kept back where freezing is the reason."""

import contextlib
import warnings
from typing import Any

from torch import nn

from lit_transfer.freezing import is_held

__all__ = ["expect_frozen_modules", "expect_nothing"]

_TEXT = r"Found \d+ module\(s\) in eval mode at the start of training"


def expect_frozen_modules(module: nn.Module) -> tuple[Any, ...] | None:
    """Ignore the warning if each module in eval mode is there because it is frozen.

    Returns:
        The filter that `expect_nothing` takes away again, or None.
    """
    asleep = [part for part in module.modules() if not part.training]
    if not asleep or not all(is_held(part) for part in asleep):
        return None
    warnings.filterwarnings("ignore", _TEXT)
    return tuple(warnings.filters[0])


def expect_nothing(entry: tuple[Any, ...] | None) -> None:
    """Take the filter away; without one, or where it is gone already, do nothing."""
    if entry is not None and isinstance(warnings.filters, list):
        with contextlib.suppress(ValueError):
            warnings.filters.remove(entry)
