"""Named optimizer groups by stage and by decay: every parameter once, layer-wise rates as real learning rates."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from lit_transfer._selection import flat_names, is_lora, is_norm, select, stages_again
from lit_transfer.stages import Stage

__all__ = ["param_groups"]

# Parameters of these names are tables and tokens, not maps between features: pos_embed, position_embedding.weight,
# relative_position_bias_table, class_token, cls_token, reg_token.
_TABLES = re.compile(
    r"(^|[._])(pos|position|positional)([._]|$)|((cls|class|dist|distillation|reg|register|mask)_?tokens?|class_embedding)$"
)


def param_groups(
    module: nn.Module,
    lr: float,
    weight_decay: float = 0.01,
    *,
    layer_decay: float | None = None,
    head_lr: float | None = None,
    lora_lr: float | None = None,
    no_decay: str | Iterable[str] = (),
    stages: Sequence[Stage] | None = None,
) -> list[dict[str, Any]]:
    """Divide the parameters of a module into named groups for an optimizer, by stage and by weight decay.

    Each parameter is in exactly one group, a tied one once, a frozen one too: the optimizer skips what has no
    gradient, and nothing has to be added when it is unfrozen. Norm layers, biases and everything else of one
    dimension, position tables, class tokens and what the model names in `no_weight_decay()` have no weight decay.

    With `layer_decay`, the group of a stage has the rate `lr * layer_decay ** d`, where d is 0 for the head, 1 for the
    last stage, and so on down to the stem (Clark et al., ELECTRA, arXiv:2003.10555, appendix; Howard and Ruder,
    ULMFiT, arXiv:1801.06146, section 3.2). It is a real learning rate, so that every scheduler keeps the ratios.

    Args:
        module: Any module; a LightningModule passes itself in `configure_optimizers`.
        lr: Learning rate of the last stage, or of the head where `layer_decay` is given. 0 is allowed: such
            parameters receive gradients and do not move, which costs more than freezing them.
        weight_decay: Weight decay of the groups that have one.
        layer_decay: Factor from each stage to the one below it, above 0 and at most 1. None: one rate.
        head_lr: Learning rate of the head, instead of `lr`.
        lora_lr: Learning rate of adapters (see `lit_transfer.lora`), which are a group of their own; None for the
            head's.
        no_decay: Further words for parameters without decay: stages, modules, shell patterns such as `"*.gamma"`,
            or regular expressions after `re:`.
        stages: The stages of `module`; traced if not given. A module that FSDP or FSDP2 has sharded by now must have
            been seen before by `FinetuningSchedule` or `TrainabilityAudit`, or have its stages as `stages`.

    Returns:
        Groups from the stem to the head, with the keys `name` (`"stage4.decay"`, `"stage4.no_decay"`), `stage`,
        `params` (pairs of name and parameter, which the optimizers of torch keep as `param_names`), `lr`, `rate` (the
        same, which no scheduler changes) and `weight_decay`.

    Raises:
        ValueError: A rate, decay or factor out of its range, a word of `no_decay` that matches nothing, or parameters
            that FSDP has flattened unseen.
    """
    _check(lr=lr, weight_decay=weight_decay, head_lr=head_lr, lora_lr=lora_lr)
    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay must be above 0 and at most 1, got {layer_decay}.")
    # A module's own stages are named as it was before a strategy wrapped its parts.
    known = getattr(module, "stages", ()) if stages is None else stages
    told = isinstance(known, (tuple, list)) and all(isinstance(stage, Stage) for stage in known)
    stages = stages_again(module, tuple(known) if told else ())
    plain = set(_without_decay(module)) | set(select(module, no_decay, stages=stages))
    rates = _rates(stages, lr, layer_decay, head_lr)
    named = dict(module.named_parameters())
    groups = []
    for stage in stages:
        for kind, decays in (("decay", True), ("no_decay", False)):
            own = [name for name in stage.parameters if not is_lora(name)]
            members = [(name, named[name]) for name in own if (name not in plain) is decays]
            if members:
                groups.append(
                    {
                        "name": f"{stage.name}.{kind}",
                        "stage": stage.name,
                        "params": members,
                        "lr": rates[stage.name],
                        "rate": rates[stage.name],
                        "weight_decay": weight_decay if decays else 0.0,
                    }
                )
    if adapters := [(name, parameter) for name, parameter in named.items() if is_lora(name)]:
        rate = rates["head"] if lora_lr is None else lora_lr
        first = {"name": "lora", "stage": "lora", "params": adapters}
        groups.append({**first, "lr": rate, "rate": rate, "weight_decay": weight_decay})
    return groups


def _check(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not 0 <= value < float("inf"):
            raise ValueError(f"{name} must be a number of at least 0, got {value}.")


def _rates(stages: Sequence[Stage], lr: float, layer_decay: float | None, head_lr: float | None) -> dict[str, float]:
    backbone = [stage.name for stage in stages if stage.name != "head"]
    factor = 1.0 if layer_decay is None else layer_decay
    rates = {name: lr * factor ** (len(backbone) - depth) for depth, name in enumerate(backbone)}
    return rates | {"head": lr if head_lr is None else head_lr}


def _without_decay(module: nn.Module) -> Iterator[str]:
    """Yield the names of the parameters that no recipe decays."""
    flat = flat_names(module)
    for prefix, owner in module.named_modules():
        dot = f"{prefix}." if prefix else ""
        told = getattr(owner, "no_weight_decay", None)
        for name in told() if callable(told) else ():
            yield f"{dot}{name}"
        for name, _ in owner.named_parameters(recurse=False):
            if f"{dot}{name}" in flat or is_norm(owner) or _TABLES.search(f"{dot}{name}"):
                yield f"{dot}{name}"
