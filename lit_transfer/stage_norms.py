"""How large the gradients, weights and updates of each stage are, measured around one optimizer step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_transfer.stages import Stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["StageNorm", "StepMeasure", "columns", "plot_norms"]


@dataclass(frozen=True)
class StageNorm:
    """Euclidean norms over those parameters of a stage that had a gradient in one step.

    Attributes:
        gradient: Of their gradients.
        weight: Of their values before the step.
        update: Of what the step changed, divided by `weight`; None where all weights were 0.
    """

    gradient: float
    weight: float
    update: float | None


class StepMeasure:
    """Measures one optimizer step, from before it until after it; in between it keeps a copy of what trains."""

    def __init__(self) -> None:
        self._before: dict[int, tuple[nn.Parameter, Tensor, Tensor]] = {}

    def begin(self, optimizer: Optimizer, scale: float = 1.0) -> None:
        """Look at the gradients that an optimizer is about to use, and keep the weights as they are.

        Where this is called again before `end`, the gradients are looked at anew and the weights first kept are meant:
        an optimizer may step several times, or try several points.

        Args:
            optimizer: Its parameters with a gradient are measured; others do not move.
            scale: What the gradients are still multiplied with.
        """
        for parameter in (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None):
            _, kept, _ = self._before.get(id(parameter)) or (None, parameter.detach().clone(), None)
            self._before[id(parameter)] = parameter, kept, _norm(parameter.grad) / scale

    def end(self, module: nn.Module, stages: Iterable[Stage]) -> dict[str, StageNorm]:
        """Give the norms of each stage of which anything was measured, from stem to head, and forget the copies.

        Args:
            module: The module that trains. A parameter that is shared is counted once, in the first stage that has it.
            stages: Its stages.
        """
        found = dict(self._by_stage(module, stages))
        self._before = {}
        # One wait for the device, however many stages there are.
        values = torch.stack(list(found.values())).tolist() if found else []
        return {
            stage: StageNorm(gradient, weight, moved / weight if weight else None)
            for stage, (gradient, weight, moved) in zip(found, values, strict=True)
        }

    def _by_stage(self, module: nn.Module, stages: Iterable[Stage]) -> Iterator[tuple[str, Tensor]]:
        named, seen = dict(module.named_parameters()), set()
        for stage in stages:
            ids = dict.fromkeys(id(named[name]) for name in stage.parameters if name in named)
            members = [self._before[key] for key in ids if key in self._before and key not in seen]
            seen |= set(ids)
            if members:
                gradients = [gradient for _, _, gradient in members]
                weights = [_norm(kept) for _, kept, _ in members]
                moves = [_norm(parameter.detach() - kept) for parameter, kept, _ in members]
                yield stage.name, torch.stack([_together(norms) for norms in (gradients, weights, moves)])


def _norm(values: Tensor) -> Tensor:
    """Give the norm of a tensor, of half precision and sparse ones too; at least float32, where 256 squared fits."""
    dense = values.detach().coalesce().values() if values.is_sparse else values.detach()
    dense = torch.view_as_real(dense) if dense.is_complex() else dense
    norm: Tensor = torch.linalg.vector_norm(dense, dtype=torch.promote_types(dense.dtype, torch.float32))
    return norm


def _together(norms: Sequence[Tensor]) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(norms[0]) for norm in norms]))
    return norm


def columns(norms: Mapping[str, StageNorm]) -> dict[str, float]:
    """Give what is logged: `grad_norm/STAGE`, `weight_norm/STAGE`, `update_ratio/STAGE`, where there is a value."""
    each = [
        (f"{name}/{stage}", value)
        for name, attribute in (("grad_norm", "gradient"), ("weight_norm", "weight"), ("update_ratio", "update"))
        for stage, norm in norms.items()
        if (value := getattr(norm, attribute)) is not None
    ]
    return dict(each)


def plot_norms(measured: Mapping[int, Mapping[str, StageNorm]]) -> Figure:
    """Draw gradients, weights and updates of each stage against the steps, one above the other.

    Args:
        measured: For each optimizer step, the norms of the stages.

    Returns:
        The figure. A stage has no line where it is frozen.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    fullest = max(measured.values(), key=len)  # its stages are in order
    stages = list(dict.fromkeys(stage for norms in (fullest, *measured.values()) for stage in norms))
    figure = Figure(figsize=(8, 7.5), layout="constrained")
    rows = figure.subplots(3, 1, sharex=True)
    words = {"gradient": "gradient norm", "weight": "weight norm", "update": "update / weight"}
    for axes, (attribute, label) in zip(rows, words.items(), strict=True):
        for place, stage in enumerate(stages):
            color = colormaps["viridis"](0.9 * place / max(1, len(stages) - 1))
            # NaN where there is nothing to draw: a line would bridge the time in which a stage is frozen.
            values = [getattr(norms.get(stage), attribute, None) or float("nan") for norms in measured.values()]
            axes.plot(list(measured), values, color=color, label=stage, marker=".", markersize=4)
        axes.set(ylabel=label, yscale="log")
    # The order of size that Karpathy gives in his notes on CS231n, "ratio of weights:updates".
    rows[2].axhline(1e-3, color="0.5", linewidth=0.8, linestyle=":")
    rows[2].set(xlabel="optimizer step (dotted: 0.001, a usual ratio)")
    rows[0].legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1), reverse=True)
    return figure
