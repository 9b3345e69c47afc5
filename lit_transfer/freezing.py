"""What frozen means: no gradient, norm layers on running statistics, dropout off, train() or not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence

from torch import nn

from lit_transfer._selection import is_norm, select_each
from lit_transfer.stages import Stage

__all__ = [
    "freeze",
    "frozen_names",
    "held_names",
    "is_held",
    "release_replaced",
    "train_only",
    "unfreeze",
    "updates_statistics",
]

_MARK = "_lit_transfer_frozen"  # on a module: its own parameters that `freeze` holds, by their local names
_States = list[
    bool | None
]  # for each parameter in order: None it trains, False it is frozen, True and statistics go on


def freeze(
    module: nn.Module,
    what: str | Iterable[str],
    *,
    train_norms: bool = False,
    update_statistics: bool = False,
    stages: Sequence[Stage] | None = None,
) -> tuple[str, ...]:
    """Freeze stages or parameters of a module, in place, until `unfreeze`.

    A frozen parameter has no gradient (`requires_grad` False, `.grad` None). A module all of whose parameters are
    frozen stays in eval mode, whoever calls `train()` on it or around it: norm layers use their running statistics,
    dropout and stochastic depth are off, the functional ones in its `forward` too. A module without parameters (a
    dropout between two layers) follows the next parameter in order of registration, so that it belongs to the layer
    that it feeds. Parameter objects and the keys of the state dict stay as they are; copies and pickles are frozen too.

    What was without gradient before, inside something that trained, was made so (a fixed position table): it is left
    out, and `unfreeze` will not touch it. A stage that was wholly without gradient is taken over.

    Args:
        module: Any module.
        what: Stage names, `"all"`, `"backbone"`, dotted module or parameter names, shell patterns on parameter names,
            or regular expressions after `re:`.
        train_norms: Leave weight and bias of the norm layers trainable. Their statistics stay fixed, but the memory
            saved by freezing is lost: a ResNet-18 then keeps 97 % of its activations for the backward pass.
        update_statistics: Let norm layers go on updating their running statistics in train mode. The features of the
            frozen part then change during training, and differ between train and eval mode.
        stages: The stages of `module`, where they are known; otherwise it is traced if a word needs it.

    Returns:
        The names of the parameters that `what` means.

    Raises:
        ValueError: A word matches nothing; nothing is changed then.
    """
    groups = select_each(module, what, stages=stages)
    _apply(module, _takeable(module, groups), set(), train_norms, update_statistics)
    return _in_order(module, groups)


def unfreeze(
    module: nn.Module, what: str | Iterable[str] = "all", *, stages: Sequence[Stage] | None = None
) -> tuple[str, ...]:
    """Undo `freeze` for stages or parameters: gradients again, and the train or eval mode of the module around them.

    Args:
        module: The module that was given to `freeze`, or a part of it, or a copy.
        what: As for `freeze`. Parameters that `freeze` did not freeze stay as they are.
        stages: The stages of `module`, where they are known.

    Returns:
        The names of the parameters that `what` means.

    Raises:
        ValueError: A word matches nothing, or only parameters that other code put out of training.
    """
    groups = select_each(module, what, stages=stages)
    named = dict(module.named_parameters())
    chosen = {id(named[name]) for group in groups for name in group}
    held = [(owner, name, p) for owner, name, p in _own_parameters(module) if id(p) in chosen and name in _marks(owner)]
    if not held and not any(named[name].requires_grad for group in groups for name in group):
        raise ValueError(
            f"unfreeze({what!r}) found only parameters that freeze() did not freeze: they had no gradient before, by "
            "requires_grad_(False) in other code. Call requires_grad_(True) on them, or freeze them with freeze()."
        )
    _apply(module, set(), {id(p) for _, _, p in held})
    return _in_order(module, groups)


def train_only(
    module: nn.Module,
    what: str | Iterable[str],
    *,
    train_norms: bool = False,
    update_statistics: bool = False,
    stages: Sequence[Stage] | None = None,
) -> tuple[str, ...]:
    """Let `what` train and freeze everything else, in one move; what stays as it is keeps its gradient.

    Args:
        module: Any module.
        what: As for `freeze`.
        train_norms: As for `freeze`.
        update_statistics: As for `freeze`.
        stages: The stages of `module`, where they are known.

    Returns:
        The names of the parameters that `what` means.

    Raises:
        ValueError: A word matches nothing, or only parameters that other code put out of training.
    """
    groups = select_each(module, what, stages=stages)
    named = dict(module.named_parameters())
    everything = select_each(module, "all", stages=stages)
    takeable = _takeable(module, everything)
    for group in groups:
        if not any(id(named[name]) in takeable for name in group):
            raise ValueError(
                f"{', '.join(group)} cannot train: no gradient was asked for before, by requires_grad_(False) in other "
                "code, in a stage that trains otherwise. Call requires_grad_(True) before the fit."
            )
    up = takeable & {id(named[name]) for group in groups for name in group}
    _apply(module, takeable - up, up, train_norms, update_statistics)
    return _in_order(module, groups)


def frozen_names(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the parameters without gradient, whoever froze them, in order; tied ones once."""
    return tuple(name for name, parameter in module.named_parameters() if not parameter.requires_grad)


def held_names(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the parameters that `freeze` holds; norm affines left trainable by an option among them."""
    held = {id(p) for owner, name, p in _own_parameters(module) if name in _marks(owner)}
    return tuple(name for name, parameter in module.named_parameters() if id(parameter) in held)


def is_held(module: nn.Module) -> bool:
    """Return whether this one module stays in eval mode because it is frozen."""
    return isinstance(module.__dict__.get("train"), _StaysInEval)


def updates_statistics(module: nn.Module) -> bool:
    """Return whether this norm layer is frozen and goes on updating its statistics, by the option of `freeze`."""
    return any(_marks(module).values())


def release_replaced(module: nn.Module, held: Iterable[str]) -> None:
    """Give parameters their gradient back whose module was replaced after freezing, so that they can be frozen anew.

    Conversions such as `SyncBatchNorm.convert_sync_batchnorm` put new modules around frozen parameters.

    Args:
        module: The module whose parts may have been replaced.
        held: What `held_names` gave before.
    """
    lost = set(held) - set(held_names(module))
    for name, parameter in module.named_parameters():
        if name in lost:
            parameter.requires_grad_(True)


class _StaysInEval:
    """Stands in for `train` on one frozen module: the mode goes on to the children, its own flag stays down.

    An attribute of the instance is the one form that meets every caller of `train()`, whoever owns the module, and
    that deepcopy, pickle and torch.compile carry along without a change of class, names or parameters.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.mode = module.training
        self.replaced: Callable[..., object] | None = module.__dict__.get("train")

    def __call__(self, mode: bool = True) -> nn.Module:
        if self.replaced is None:
            type(self.module).train(self.module, mode)
        else:
            self.replaced(mode)
        self.mode = mode
        self.module.training = False
        return self.module

    def remove(self, mode: bool) -> None:
        """Give the module its own `train` back, and the mode of what is around it."""
        del self.module.__dict__["train"]
        if self.replaced is not None:
            self.module.__dict__["train"] = self.replaced
        self.module.training = mode


def _own_parameters(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Yield (owner, local name, parameter) for every place of every parameter, tied ones at each of theirs."""
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                yield owner, name, parameter


def _marks(owner: nn.Module) -> dict[str, bool]:
    marks: dict[str, bool] = owner.__dict__.get(_MARK, {})
    return marks


def _in_order(module: nn.Module, groups: Iterable[Iterable[str]]) -> tuple[str, ...]:
    chosen = {name for group in groups for name in group}
    return tuple(name for name, _ in module.named_parameters() if name in chosen)


def _takeable(module: nn.Module, groups: Iterable[tuple[str, ...]]) -> set[int]:
    """Ids of what freezing may hold: in each group what trains or is held already, else the whole group."""
    named = dict(module.named_parameters())
    held = {id(p) for owner, name, p in _own_parameters(module) if name in _marks(owner)}
    chosen: set[int] = set()
    for group in groups:
        ours = [name for name in group if named[name].requires_grad or id(named[name]) in held]
        chosen |= {id(named[n]) for n in ours or group if named[n].is_floating_point() or named[n].is_complex()}
    return chosen


def _apply(
    module: nn.Module, down: set[int], up: set[int], train_norms: bool = False, update_statistics: bool = False
) -> None:
    """Mark and freeze the parameters in `down`, release those in `up`, and set the modes accordingly."""
    for owner, name, parameter in _own_parameters(module):
        if id(parameter) in up:
            parameter.requires_grad_(True)
            _marks(owner).pop(name, None)
        elif id(parameter) in down:
            owner.__dict__.setdefault(_MARK, {})[name] = update_statistics
            parameter.requires_grad_(train_norms and is_norm(owner))
            if not parameter.requires_grad:
                parameter.grad = None
    _settle(module)


def _settle(root: nn.Module) -> None:
    """Make every module's mode agree with the marks: a guard on each frozen one, none on the others."""
    frozen = _frozen_modules(root)
    for owner in root.modules():
        if owner.__dict__.get(_MARK) == {}:
            del owner.__dict__[_MARK]
    _settle_below(root, frozen, None)


def _settle_below(module: nn.Module, frozen: set[int], mode: bool | None) -> None:
    guard = module.__dict__.get("train")
    if id(module) in frozen:
        if not isinstance(guard, _StaysInEval):
            _tell_batch_statistics(module)
            module.__dict__["train"] = _StaysInEval(module)
        module.training = False
    else:
        if isinstance(guard, _StaysInEval):
            # Lightning's validation sets `training` without train(): the mode around the module is the newer one.
            guard.remove(guard.mode if mode is None else mode)
        mode = module.training
    for child in module.children():
        _settle_below(child, frozen, mode)


def _frozen_modules(root: nn.Module) -> set[int]:
    """Ids of the modules that stay in eval mode: wholly frozen, or without parameters and in front of what is."""
    frozen: set[int] = set()
    _find_frozen(root, [], frozen)
    return frozen


def _find_frozen(module: nn.Module, around: _States, frozen: set[int]) -> None:
    """Add `module` and what is in it to `frozen`; `around` is what a module without parameters goes by."""
    states = _states(module) or around
    if states and None not in states and not (_has_statistics(module) and True in states):
        frozen.add(id(module))
    children = list(module.children())
    known = [_states(child) for child in children]
    for position, child in enumerate(children):
        after = [state for state in known[position + 1 :] if state]
        before = [state for state in known[:position] if state]
        near = after[0][:1] if after else before[-1][-1:] if before else states
        _find_frozen(child, near, frozen)


def _states(module: nn.Module) -> _States:
    """The state of every parameter in `module`; one that never trains (a fixed position table) says nothing."""
    places = _own_parameters(module)
    return [_marks(owner).get(name) for owner, name, p in places if p.requires_grad or name in _marks(owner)]


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None


def _tell_batch_statistics(module: nn.Module) -> None:
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
        warnings.warn(
            f"A frozen {type(module).__name__}({module.num_features}) keeps no running statistics "
            "(track_running_stats=False): it normalises each batch by that batch, in eval mode too, so that its "
            "features depend on what else is in the batch. Build it with track_running_stats=True to freeze it.",
            stacklevel=4,
        )
