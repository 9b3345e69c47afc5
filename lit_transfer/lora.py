"""Low-rank adapters (LoRA) in a module, put in and merged by peft: beside each layer, under names of their own."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from lit_transfer._selection import is_lora, select
from lit_transfer.stages import Stage, Trace, stages_of

__all__ = ["add_lora", "lora_options", "merge_lora"]

_OPTIONS = "_lit_transfer_lora"  # on a module: what `add_lora` was called with, its targets by name
_BASE = "base_layer"  # under which name peft keeps the layer


def add_lora(
    module: nn.Module,
    *,
    r: int = 8,
    alpha: float | None = None,
    dropout: float = 0.0,
    targets: str | Iterable[str] = "backbone",
) -> tuple[str, ...]:
    """Put an adapter beside each of some layers: y = W x + (alpha / r) B A x, B being zero at first.

    Answers are the same as before, until the adapters train (Hu et al., arXiv:2106.09685). A layer's own weights get
    the name that they had with `base_layer` before the last part (`fc.weight` is `fc.base_layer.weight`), so load
    weights before. Whether anything trains or is frozen stays as it is; adapters belong to the stage of their layer,
    and all of them together are the word `lora` of a schedule or of `freeze`.

    Only layers that are just `nn.Linear` or `nn.Conv2d` take one. Left out are grouped, dilated and oddly padded
    convolutions, which peft cannot merge, and what a module around them only takes the weights of, as
    `nn.MultiheadAttention` does.

    Args:
        module: Any module that trains; a LightningModule, its backbone, a plain model.
        r: Rank of the adapters.
        alpha: They count `alpha / r` times; None for once.
        dropout: Probability with which a value on the way into an adapter is dropped.
        targets: Which layers: stages, `"backbone"`, `"all"`, dotted names, patterns on parameter names as for `freeze`,
            or the last parts of layers' names as peft has them (`"qkv"`).

    Returns:
        Names of the layers that have an adapter now, as they were.

    Raises:
        ImportError: If peft is not installed.
        ValueError: If a target names no layer that can take an adapter, a number is out of range, or there are
            adapters already.
    """
    _check(module, r, alpha, dropout)
    chosen = _targets(module, [targets] if isinstance(targets, str) else list(targets))
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("adapters need peft: pip install 'lit-transfer[lora]'.") from error
    counts: Any = r if alpha is None else alpha  # peft takes fractions too
    options = {"r": r, "alpha": counts, "dropout": dropout, "targets": list(chosen)}
    pattern = "|".join(map(re.escape, chosen))  # as one expression it is matched in full, a list by last parts too
    config = LoraConfig(r=r, lora_alpha=counts, lora_dropout=dropout, target_modules=f"(?:{pattern})")
    trained = {id(parameter): parameter.requires_grad for parameter in module.parameters()}
    inject_adapter_in_model(config, module)
    del module.peft_config
    for parameter in module.parameters():  # peft has put out of training all but the adapters
        parameter.requires_grad_(trained.get(id(parameter), True))
    for layer in _adapted(module).values():
        layer.train(layer.training)  # what is new in it is in train mode
    _restage(module)
    vars(module)[_OPTIONS] = options
    return chosen


def lora_options(module: nn.Module) -> dict[str, Any] | None:
    """Give the arguments with which `add_lora` makes the same adapters in such a module; None where there are none."""
    for prefix, part in module.named_modules():
        if (options := vars(part).get(_OPTIONS)) is not None:
            dot = f"{prefix}." if prefix else ""
            return {**options, "targets": [f"{dot}{name}" for name in options["targets"]]}
    return None


def merge_lora(module: nn.Module) -> tuple[str, ...]:
    """Add each adapter to the weights of its layer and take it away, in place: the module is as it was built.

    Names are those of upstream again. Answers stay equal up to rounding: in float32 on a CPU, in eval mode, to 1e-5 of
    the largest answer (see the tests for the models).

    Args:
        module: Any module; one without adapters is left as it is, and peft is not needed.

    Returns:
        Names of the layers that had an adapter.

    Raises:
        ValueError: If weights are not finite after that.
    """
    found = _adapted(module)
    for name, layer in found.items():
        parent, _, child = name.rpartition(".")
        layer.merge(safe_merge=True)
        base: nn.Module = layer.get_base_layer()
        base.train(layer.training)
        module.get_submodule(parent)._modules[child] = base
    if found:
        _restage(module)
    for part in module.modules():
        vars(part).pop(_OPTIONS, None)
    return tuple(found)


def _adapted(module: nn.Module) -> dict[str, Any]:
    """Name -> layer of peft; told by what it has, so that peft is only imported where there may be some."""
    return {n: m for n, m in module.named_modules() if hasattr(m, "lora_A") and hasattr(m, "get_base_layer")}


def _check(module: nn.Module, r: int, alpha: float | None, dropout: float) -> None:
    if isinstance(r, bool) or not isinstance(r, int) or r < 1:
        raise ValueError(f"r={r!r}: the rank of adapters is a whole number of at least 1.")
    if (alpha is not None and alpha <= 0) or not 0 <= dropout < 1:
        raise ValueError(f"alpha={alpha} must be above 0, and dropout={dropout} at least 0 and below 1.")
    if _adapted(module):
        raise ValueError(f"{type(module).__name__} has adapters already: merge_lora puts them into its weights.")


def _targets(module: nn.Module, words: Sequence[str]) -> tuple[str, ...]:
    """Find the layers that the words mean.

    Raises:
        ValueError: If a word means none.
    """
    layers = [name for name, layer in module.named_modules() if _takes_one(layer) and name]
    chosen: set[str] = set()
    stages: tuple[Stage, ...] | None = None
    for word in words:
        found = {word} if word in layers else {name for name in layers if name.endswith(f".{word}")}
        if not found:
            stages = stages or stages_of(module)
            found = _layers_of(module, word, layers, stages)
        if not found:
            raise ValueError(_nothing(word, layers, stages or ()))
        chosen |= found
    if not chosen:
        raise ValueError("targets is empty: name the layers that get an adapter.")
    return tuple(name for name in layers if name in chosen)


def _layers_of(module: nn.Module, word: str, layers: Sequence[str], stages: Sequence[Stage]) -> set[str]:
    try:
        parameters = set(select(module, word, stages=stages))
    except ValueError:
        return set()
    return {name for name in layers if f"{name}.weight" in parameters}


def _takes_one(layer: nn.Module) -> bool:
    # Not subclasses: a convolution that standardises its weights, or one whose weights only another module reads.
    if type(layer) is nn.Linear:
        return True
    if type(layer) is not nn.Conv2d:
        return False
    return layer.groups == 1 and set(layer.dilation) == {1} and layer.padding_mode == "zeros"


def _nothing(word: str, layers: Sequence[str], stages: Sequence[Stage]) -> str:
    last = {name.rpartition(".")[2] for name in layers}
    near = difflib.get_close_matches(word, [*(stage.name for stage in stages), *sorted(last), *layers], n=3, cutoff=0.5)
    hint = f" Nearest: {', '.join(near)}." if near else ""
    return (
        f"targets: {word!r} names no nn.Linear or plain nn.Conv2d that can take an adapter.{hint} Stages: "
        f"{', '.join(stage.name for stage in stages)}."
    )


# --- stages whose parameters have other names now ---------------------------------------------------------------------


def _restage(module: nn.Module) -> None:
    """Let what knows its stages by the names of parameters know the names of now."""
    for part in module.modules():
        own: dict[str, Any] = vars(part)
        if isinstance(trace := own.get("trace"), Trace):
            own["trace"] = replace(trace, stages=_renamed(part, trace.stages))
        known = own.get("stages")
        if isinstance(known, tuple) and known and all(isinstance(stage, Stage) for stage in known):
            own["stages"] = _renamed(part, known)


def _renamed(module: nn.Module, stages: Sequence[Stage]) -> tuple[Stage, ...]:
    stage_of: Mapping[str, str] = {_plain(name): stage.name for stage in stages for name in stage.parameters}
    members: dict[str, list[str]] = {stage.name: [] for stage in stages}
    for name, _ in module.named_parameters():
        members[stage_of[_plain(name)]].append(name)
    return tuple(replace(stage, parameters=tuple(members[stage.name])) for stage in stages)


def _plain(name: str) -> str:
    """Give the name that a parameter had; for an adapter's, that of the weight beside it."""
    parts = name.split(".")
    if is_lora(name):
        first = next(place for place, part in enumerate(parts) if part.startswith("lora_"))
        return ".".join([*parts[:first], "weight"])
    return ".".join(part for part in parts if part != _BASE)
