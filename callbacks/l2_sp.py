"""Decay towards the pretrained weights: the callback that keeps them and pulls."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lit_transfer._selection import select
from lit_transfer.l2_sp import add_l2_sp

__all__ = ["L2SP"]


class L2SP(Callback):
    """Pulls parameters towards the values that they had when the first fit began (L2-SP, arXiv:1802.01483).

    The gradient of the penalty is added in `on_before_optimizer_step`: it is neither scaled by AMP nor reduced over
    ranks nor divided by an accumulation by then, and gradient clipping still sees it. The starting point is saved with
    the checkpoint, as nothing else could tell it after a resume.
    """

    def __init__(self, alpha: float = 0.1, what: str | list[str] = "backbone") -> None:
        """Choose how strongly to pull, and what.

        Args:
            alpha: Strength: the penalty is alpha / 2 times the squared distance. The paper tried 0.001 to 1.
            what: Stages, dotted names or patterns of the parameters, as for `lit_transfer.freeze`.
        """
        if not 0 <= alpha < float("inf"):
            raise ValueError(f"alpha must be a number of at least 0, got {alpha}.")
        self.alpha, self.what = alpha, what
        self._start: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights, which a checkpoint or another callback may have loaded by now."""
        named = dict(pl_module.named_parameters())
        names = select(pl_module, self.what)
        if not self._start:
            self._start = {name: named[name].detach().clone() for name in names}
        self._start = {name: value.to(named[name].device) for name, value in self._start.items()}
        held = {id(named[name]) for name in names}
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        if any(group.get("weight_decay") and any(id(p) in held for p in group["params"]) for group in groups):
            rank_zero_warn(
                "L2SP pulls towards the pretrained weights, and the optimizer's weight_decay pulls the same parameters "
                "towards zero. Give these groups weight_decay=0, or choose other parameters with `what`."
            )

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Add the penalty's gradient for the parameters of this optimizer that train."""
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        named = dict(pl_module.named_parameters())
        start = {name: value for name, value in self._start.items() if id(named[name]) in held}
        add_l2_sp(pl_module, start, self.alpha)

    def state_dict(self) -> dict[str, Any]:
        """Return the starting point."""
        return {"start": self._start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the starting point of the run that is resumed."""
        self._start = dict(state_dict["start"])
