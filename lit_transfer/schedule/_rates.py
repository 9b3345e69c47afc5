"""A phase's own learning rates, as factors that exist only while the optimizer steps: no scheduler ever sees them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lit_transfer.schedule._phases import Planned

__all__ = ["check_groups", "stage_factors", "stage_rates", "while_stepping"]


def check_groups(phases: Sequence[Planned], optimizers: Sequence[Optimizer]) -> None:
    """Raise where a phase sets rates and an optimizer's groups do not say which stage they hold.

    Raises:
        ValueError: With the line to write.
    """
    asks = [str(number) for number, phase in enumerate(phases, 1) if phase.sets_rates]
    unnamed = [type(o).__name__ for o in optimizers for group in o.param_groups if "stage" not in group]
    if asks and unnamed:
        raise ValueError(
            f"Phase {asks[0]} sets lr, layer_decay or warmup, which needs to know the stage of each parameter group, "
            f"and {unnamed[0]} has groups without one. Write in configure_optimizers: "
            f"{unnamed[0]}(param_groups(self, lr=...)), with param_groups from lit_transfer."
        )


def stage_rates(optimizers: Sequence[Optimizer], stages: Sequence[str]) -> dict[str, float]:
    """Return the rate that `param_groups` gave to each stage, from the stem to the head."""
    found = {group["stage"]: float(group["rate"]) for o in optimizers for group in o.param_groups if "stage" in group}
    # adapters have a rate of their own, which goes with the head's
    return {stage: found[stage] for stage in ("lora", *stages) if stage in found}


def stage_factors(rates: Mapping[str, float], phase: Planned, warm: float = 1.0) -> dict[str, float]:
    """Return the factor of each stage's learning rate in a phase.

    With `lr`, all rates are scaled so that the head has it (the last stage, where there is no head). With
    `layer_decay`, the last stage keeps its rate and each one below has that of the stage above times the factor.

    Args:
        rates: What `stage_rates` gives.
        phase: The phase.
        warm: Part of the warm-up that is done, from 0 to 1.

    Returns:
        The factor by the stage's name.

    Raises:
        ValueError: The phase sets a rate for what has the rate 0.
    """
    backbone = [stage for stage in rates if stage not in ("head", "lora")]
    scale = 1.0 if phase.lr is None else _ratio(phase.lr, rates, [*rates][-1])
    factors = dict.fromkeys(rates, scale * warm)
    for distance, stage in enumerate(reversed(backbone) if phase.layer_decay is not None else ()):
        factors[stage] *= _ratio(rates[backbone[-1]] * (phase.layer_decay or 1.0) ** distance, rates, stage)
    return factors


def _ratio(target: float, rates: Mapping[str, float], stage: str) -> float:
    if rates[stage] == 0:
        raise ValueError(
            f"A phase sets a learning rate for {stage}, whose rate in param_groups is 0, and schedulers keep it there. "
            "Give it a rate in param_groups, and freeze it in the phases in which it is not to move."
        )
    return target / rates[stage]


def while_stepping(optimizer: Optimizer, factors: Callable[[], Mapping[str, float] | None]) -> list[RemovableHandle]:
    """Multiply the groups' rates by factors while the optimizer steps, after the closure and until the step is done.

    Args:
        optimizer: Any optimizer that keeps torch's step hooks.
        factors: Called before each step, gives the factor of each stage; None for the groups' own rates.

    Returns:
        Handles that take the hooks away.
    """
    scaled = _Scaled(optimizer, factors)
    return [optimizer.register_step_pre_hook(scaled.before), optimizer.register_step_post_hook(scaled.after)]


class _Scaled:
    """The rates of one optimizer, scaled from the moment at which its gradients are there until its step is done."""

    def __init__(self, optimizer: Optimizer, factors: Callable[[], Mapping[str, float] | None]) -> None:
        self.optimizer, self.factors = optimizer, factors
        self.own: list[Any] = []
        self.depth = 0  # a subclass that calls its parent's step runs the hooks of both

    def before(self, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.depth += 1
        # An error in forward or backward must leave the rates as they are, since a checkpoint may be saved after it:
        # where the optimizer calls them as its closure, the factors come in when the closure has returned.
        if kwargs.get("closure") is not None:
            return args, {**kwargs, "closure": self._then_scale(kwargs["closure"])}
        if len(args) > 1 and args[1] is not None:
            return (args[0], self._then_scale(args[1]), *args[2:]), kwargs
        return self._scale()

    def after(self, *_: Any) -> None:
        self.depth -= 1
        if self.depth == 0:
            for group, lr in zip(self.optimizer.param_groups, self.own, strict=False):
                group["lr"] = lr
            self.own = []

    def _then_scale(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def closed() -> Any:
            self.depth, depth = 0, self.depth
            loss = closure()
            self.depth = depth
            self._scale()
            return loss

        return closed

    def _scale(self) -> None:
        found = self.factors()
        if found is None or self.own:
            return
        self.own = [group["lr"] for group in self.optimizer.param_groups]
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"] * found[group["stage"]]
