"""The head of a model: what may stay fresh when a file was trained for other classes, or has no head at all."""

from collections.abc import Sequence

from torch import nn

from lit_transfer.weights._match import Match
from lit_transfer.weights._target import is_counter, is_under, require_module

_HEAD_PARTS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.Dropout,
    nn.modules.dropout._DropoutNd,
    nn.Flatten,
    nn.Identity,
)


def find_head(match: Match, head: Sequence[str] | None) -> tuple[str, ...]:
    """Dotted names of the modules that may stay fresh.

    A given `head` is only checked. Else it is the last module with parameters, if it is a Linear or a 1x1 convolution
    that the file lacks or gives other rows; with it go other outputs whose rows differ in the same way (auxiliary
    classifiers), and, where the file lacks all of it, the chain of linear and normalisation layers that encloses it.
    """
    if head is not None:
        for name in head:
            require_module(match.target, name, "head")
        return tuple(head)
    last = last_output(match)
    if not last:  # a model that is one layer is no head of anything
        return ()
    if f"{last}.weight" not in match.pairs:
        return (_enclosing_chain(match, last),)
    rows = _rows(match, last)
    if rows is None:
        return ()
    others = (n for n, module in match.target.modules.items() if is_under(n, match.part) and is_output(module))
    return tuple(dict.fromkeys([last, *(n for n in others if _rows(match, n) == rows)]))


def is_output(module: nn.Module) -> bool:
    """Whether the module is a Linear or a 1x1 convolution."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return all(size == 1 for size in module.kernel_size)
    return isinstance(module, nn.Linear)


def is_cut_head(match: Match, name: str) -> bool:
    """Whether a left-over tensor belongs to a classifier that was cut: the model has an Identity, or nothing, there.

    A normalisation layer alone is no classifier: features without it are other features.
    """
    place = name.rpartition(".")[0]
    while place and place not in match.target.modules:
        place = place.rpartition(".")[0]
    if place in ("", match.part) or place not in match.target.empty:
        return False
    weights = [match.state_dict[source].shape for other, source in match.leftover.items() if is_under(other, place)]
    return any(len(shape) == 2 for shape in weights) or any(
        len(shape) > 2 and set(shape[2:]) == {1} for shape in weights
    )


def last_output(match: Match) -> str | None:
    """The last module with parameters, if it is a Linear or a 1x1 convolution."""
    owners = list(dict.fromkeys(name.rpartition(".")[0] for name in match.slots if not is_counter(name)))
    for owner in reversed(owners):
        module = match.target.modules[owner]
        if is_output(module):
            return owner
        if not isinstance(module, _HEAD_PARTS) or any(is_under(name, owner) for name in match.pairs):
            return None
    return None


def _rows(match: Match, name: str) -> tuple[int, int] | None:
    """(rows in the file, rows in the model) of an output, where only they differ."""
    weight = f"{name}.weight"
    if weight not in match.pairs or not name or weight not in match.slots:
        return None
    theirs, ours = match.tensor(weight).shape, tuple(match.slots[weight].shape)
    if len(theirs) != len(ours) or theirs[1:] != ours[1:] or theirs[0] == ours[0]:
        return None
    return theirs[0], ours[0]


def _enclosing_chain(match: Match, name: str) -> str:
    """The largest module around `name` that the file lacks entirely and that is made of linear layers and norms."""
    parent = name.rpartition(".")[0]
    while parent and parent != match.part and is_under(parent, match.part):
        lacking = not any(is_under(pair, parent) for pair in match.pairs)
        leaves = [m for n, m in match.target.modules.items() if is_under(n, parent) and m._parameters]
        if not lacking or not all(is_output(leaf) or isinstance(leaf, _HEAD_PARTS) for leaf in leaves):
            break
        name, parent = parent, parent.rpartition(".")[0]
    return name
