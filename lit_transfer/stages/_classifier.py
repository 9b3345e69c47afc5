"""The module that makes the logits."""

from __future__ import annotations

import difflib

from torch import nn

from lit_transfer.stages._record import Record

__all__ = ["find_classifiers", "named_classifier"]


def find_classifiers(module: nn.Module, record: Record) -> tuple[str, ...]:
    """Names of the last used Linear or 1x1 convolution, after which no parameter is used, and of any beside it.

    Distilled transformers have two heads on two tokens: with the same number of inputs and of outputs, and these two
    numbers different, neither can follow the other, so both are classifiers.

    Returns:
        In the order of use; empty where the module ends in something else (a normalisation), or where what comes last
        is part of a block that is repeated.
    """
    modules, parameters = dict(module.named_modules()), dict(module.named_parameters())
    by_time = sorted(record.last_uses.items(), key=lambda item: item[1].time)
    uses = [(name, use) for name, use in by_time if parameters[name].numel() > 1]  # a temperature may scale the logits
    last = _projection(modules, uses[-1][1].inside) if uses else None
    if last is None or record.calls[last].times > 1:
        return ()
    found = [last]
    for name, use in reversed(uses):
        beside = _projection(modules, use.inside)
        if beside is not None and beside not in found and _is_parallel(modules[beside], modules[last], record, beside):
            found.insert(0, beside)
        elif beside not in found and parameters[name].ndim > 1:
            break
    return () if _in_repeated_block(modules, record, last, found) else tuple(found)


def named_classifier(module: nn.Module, record: Record, name: str) -> str:
    """Check a name that the user gave.

    Raises:
        ValueError: There is no such module, or the run did not call it.
    """
    if name in record.calls:
        return name
    known = [n for n, m in module.named_modules() if n in record.calls and next(m.parameters(), None) is not None]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.0)
    raise ValueError(
        f"classifier={name!r}: expected the dotted name of a module that {type(module).__name__} calls in eval mode. "
        f"Nearest: {', '.join(near)}."
    )


def _projection(modules: dict[str, nn.Module], inside: tuple[str, ...]) -> str | None:
    """Name of the innermost running Linear or 1x1 convolution (a parametrized one runs modules inside itself)."""
    return next((name for name in reversed(inside) if _is_projection(modules[name])), None)


def _is_projection(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return set(module.kernel_size) == {1}
    return isinstance(module, nn.Linear)


def _is_parallel(module: nn.Module, last: nn.Module, record: Record, name: str) -> bool:
    return (
        isinstance(module, nn.Linear)
        and isinstance(last, nn.Linear)
        and (module.in_features, module.out_features) == (last.in_features, last.out_features)
        and last.in_features != last.out_features
        and record.calls[name].times == 1
    )


def _in_repeated_block(modules: dict[str, nn.Module], record: Record, name: str, beside: list[str]) -> bool:
    """True for the last layer of the last of several equal blocks, such as the MLP of a transformer without a norm."""
    parts = name.split(".")
    for depth in range(1, len(parts)):
        parent, own = modules[".".join(parts[: depth - 1])], modules[".".join(parts[:depth])]
        if isinstance(own, nn.Sequential | nn.ModuleList | nn.ModuleDict):
            continue
        for child, sibling in parent.named_children():
            twin = ".".join([*parts[: depth - 1], child, *parts[depth:]])
            if sibling is own or type(sibling) is not type(own) or twin in beside or twin not in record.calls:
                continue
            if str(modules[twin]) == str(modules[name]):
                return True
    return False
