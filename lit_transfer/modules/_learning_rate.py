"""The learning rate over a run: linear warm-up, then half a cosine down to zero."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine(optimizer: Optimizer, total_steps: float, warmup: float = 0.1) -> LambdaLR:
    """Scale every group's own rate by a factor that rises linearly to 1 and falls to 0 along half a cosine.

    The cosine is that of Loshchilov and Hutter 2016, "SGDR", equation 5, without restarts.

    Args:
        optimizer: Its groups keep their ratios.
        total_steps: Optimizer steps of the whole run; with infinity the factor stays at 1.
        warmup: Fraction of the steps that the rise takes.
    """
    if math.isinf(total_steps):
        return LambdaLR(optimizer, lambda step: 1.0)
    rise = max(1, round(warmup * total_steps))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / (rise + 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1, total_steps - rise))))

    return LambdaLR(optimizer, factor)
