"""What is trainable, owned by an optimizer, shared and reduced: the table, and the errors for what cannot be right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from torch import nn
from torch.optim import Optimizer

__all__ = ["check_optimizers"]


def check_optimizers(module: nn.Module, optimizers: Sequence[Optimizer], trains: Iterable[str]) -> None:
    """Raise unless every parameter that trains, now or later, is in an optimizer, and none is in one twice.

    Args:
        module: The module that is trained.
        optimizers: What `configure_optimizers` gave.
        trains: Names of the parameters that are to train at any time.

    Raises:
        ValueError: Parameters that no optimizer has, or that one has twice, and what to write.
    """
    counts = Counter(id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"])
    named = dict(module.named_parameters())
    left_out = [name for name in trains if not counts[id(named[name])]]
    if left_out:
        raise ValueError(
            f"{some(left_out)} will train, but no optimizer has {'it' if len(left_out) == 1 else 'them'}: "
            "configure_optimizers left out what was frozen when it ran, for example by a filter on requires_grad or by "
            "passing the head only. Pass everything, e.g. AdamW(param_groups(self, lr=1e-3)) or "
            "AdamW(self.parameters()): a frozen parameter has no gradient, and the optimizer skips it."
        )
    twice = [name for name, parameter in named.items() if counts[id(parameter)] > 1]
    if twice:
        raise ValueError(
            f"{some(twice)} {'is' if len(twice) == 1 else 'are'} in an optimizer twice, and would be moved twice in "
            "each step. Each parameter belongs into one group of one optimizer: see lit_transfer.param_groups."
        )


def some(names: Sequence[str], most: int = 4) -> str:
    """Write the first few of many names."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
