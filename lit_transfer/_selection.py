"""Which parameters a word means: a stage, a module, a parameter or a pattern; what holds of them after sharding."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from torch import nn

from lit_transfer.stages import Stage, stages_of

__all__ = ["flat_names", "is_lora", "is_norm", "remember", "select", "select_each", "stages_again", "unwrapped"]

_KNOWN = "_lit_transfer_known"  # on a module: what `remember` found
_STAGE_WORDS = re.compile(r"stem|stage\d+|head|backbone")  # words for which a module is traced


def is_norm(module: nn.Module) -> bool:
    """True for layers that normalise: torch's own, their subclasses, and any class named so (RMSNorm, LayerNorm2d)."""
    return isinstance(module, nn.modules.batchnorm._NormBase) or "norm" in type(module).__name__.lower()


def is_lora(name: str) -> bool:
    """Tell whether a parameter is part of an adapter, by the names that peft gives them (`lora_A`, `lora_B`)."""
    return any(part.startswith("lora_") for part in name.split("."))


def remember(module: nn.Module) -> tuple[Stage, ...]:
    """Return the stages of a module, and keep on it what nobody can see once a strategy has sharded it.

    A sharded module cannot be run without memory, and FSDP gives each parameter one dimension.
    """
    if any(_is_sharded(parameter) for parameter in module.parameters()):
        return stages_again(module, ())
    flat = frozenset(name for name, parameter in module.named_parameters() if parameter.ndim <= 1)
    stages = stages_of(module)
    vars(module)[_KNOWN] = (stages, flat)
    return stages


def flat_names(module: nn.Module) -> frozenset[str]:
    """Return the names of the parameters of at most one dimension, as they were before sharding.

    Raises:
        ValueError: FSDP has flattened the parameters, and nobody has looked at them before.
    """
    if not any(hasattr(parameter, "_fsdp_flattened") for parameter in module.parameters()):
        return frozenset(name for name, parameter in module.named_parameters() if parameter.ndim <= 1)
    if _KNOWN not in vars(module):
        raise ValueError(
            f"FSDP has flattened the parameters of {type(module).__name__}, so that weights, which decay, and biases, "
            "which do not, look alike. Add FinetuningSchedule or TrainabilityAudit to the trainer's callbacks: they "
            "look at the parameters before."
        )
    known: frozenset[str] = vars(module)[_KNOWN][1]
    return frozenset(name for name, _ in module.named_parameters() if unwrapped(name) in {unwrapped(n) for n in known})


def _is_sharded(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "_fsdp_flattened") or hasattr(parameter, "full_tensor")  # FSDP; FSDP2


def stages_again(module: nn.Module, known: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """Return the stages known from before if they still hold each parameter, else trace.

    Modules that torch.compile, checkpointing or FSDP put around others change names: the stages follow them. A module
    that FSDP has sharded in the meantime cannot be run without memory, and need not be, if `remember` saw it before.
    """
    known = known or vars(module).get(_KNOWN, ((), ()))[0]
    now = {unwrapped(name): name for name, _ in module.named_parameters()}
    held = {unwrapped(name) for stage in known for name in stage.parameters}
    if not known or held != set(now):
        return stages_of(module)
    return tuple(replace(stage, parameters=tuple(now[unwrapped(name)] for name in stage.parameters)) for stage in known)


def select(module: nn.Module, what: str | Iterable[str], *, stages: Sequence[Stage] | None = None) -> tuple[str, ...]:
    """Return the names of the parameters that `what` means, in the order of `module.named_parameters()`.

    Args:
        module: The module whose parameters are meant.
        what: One word or several. A word is the name of a stage (`"stem"`, `"stage4"`, `"head"`), `"all"`,
            `"backbone"` (each stage but the head), `"lora"` (all adapters, see `lit_transfer.lora`), the dotted name of
            a module or parameter, a shell pattern on parameter names (`"*.bias"`), or a regular expression on them
            after `re:` (`"re:layer[34]"`).
        stages: The stages of `module`; traced if a word needs them and they are not given.

    Returns:
        Parameter names; a tied parameter once, under its first name.

    Raises:
        ValueError: A word matches nothing.
    """
    chosen = {name for group in select_each(module, what, stages=stages) for name in group}
    return tuple(name for name, _ in module.named_parameters() if name in chosen)


def select_each(
    module: nn.Module, what: str | Iterable[str], *, stages: Sequence[Stage] | None = None
) -> list[tuple[str, ...]]:
    """Like `select`, with the names kept apart: one group for each stage that is meant and for each other word."""
    words = [what] if isinstance(what, str) else list(what)
    aliases = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    first = _first_names(module)
    groups: list[tuple[str, ...]] = []
    for word in words:
        if stages is None and _STAGE_WORDS.fullmatch(word):
            stages = stages_of(module)
        named = _stage_groups(word, stages or ())
        if named:
            groups += named
            continue
        names = {first[alias] for alias in aliases if _matches(word, alias) or _matches(word, unwrapped(alias))}
        if not names:
            raise ValueError(_nothing(module, word, stages or ()))
        groups.append(tuple(name for name, _ in module.named_parameters() if name in names))
    return groups


def _first_names(module: nn.Module) -> dict[str, str]:
    """Every name of every parameter -> the name under which `named_parameters()` gives it."""
    first = {id(parameter): name for name, parameter in module.named_parameters()}
    return {name: first[id(p)] for name, p in module.named_parameters(remove_duplicate=False)}


def _stage_groups(word: str, stages: Sequence[Stage]) -> list[tuple[str, ...]]:
    if word in {"all", "backbone"}:
        return [stage.parameters for stage in stages if word == "all" or stage.name != "head"]
    return [stage.parameters for stage in stages if stage.name == word]


def unwrapped(name: str) -> str:
    """The name as it was before torch.compile, activation checkpointing or FSDP put a module around another."""
    wrappers = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
    return ".".join(part for part in name.split(".") if part not in wrappers)


def _matches(word: str, name: str) -> bool:
    if word == "all" or (word == "lora" and is_lora(name)):
        return True
    if word.startswith("re:"):
        return re.search(word[3:], name) is not None
    if re.search(r"[*?\[]", word):
        return fnmatchcase(name, word)
    return name == word or name.startswith(f"{word}.")


def _nothing(module: nn.Module, word: str, stages: Sequence[Stage]) -> str:
    names = [name for name, _ in module.named_parameters()]
    modules = [name for name, _ in module.named_modules() if name]
    words = [stage.name for stage in stages] + ["all", "backbone"]
    near = difflib.get_close_matches(word, [*words, *modules, *names], n=3, cutoff=0.5)
    hint = f" Nearest: {', '.join(near)}." if near else ""
    known = f" Stages: {', '.join(stage.name for stage in stages)}." if stages else ""
    return (
        f"{word!r} matches no parameter of {type(module).__name__}. Expected the name of a stage, of a module or of a "
        f"parameter, a shell pattern such as '*.bias', or a regular expression after 're:'.{hint}{known}"
    )
