"""Which state dict of the file fills which part of the model, by names and shapes."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from lit_transfer.weights._edits import Edit, View, prefix_pairs, views
from lit_transfer.weights._families import family_names
from lit_transfer.weights._in_order import by_order, numbered_children
from lit_transfer.weights._layouts import StateDict
from lit_transfer.weights._lazy import LazyTensor
from lit_transfer.weights._target import Target, is_counter, is_under


@dataclass(frozen=True, eq=False)
class Match:
    """One way to fill a part of the model.

    Attributes:
        state_dict: The state dict of the file.
        edit: How its names become the model's; `edit.add` (unwrapped) is the part of the model that is filled.
        part: Dotted name of that part of the model.
        root: Dotted name of the module in which parts were looked for.
        pairs: Name in the model -> name in the file, of equal edited names; shapes may differ.
        leftover: Edited name, as the model would call it -> name in the file, for what has no place in the model.
        outside: Names in the file that do not have the prefix.
        beside: Names in the model, outside the part, that the file has among these, shapes being equal.
    """

    state_dict: StateDict
    target: Target
    edit: Edit
    part: str
    root: str
    pairs: dict[str, str]
    leftover: dict[str, str]
    outside: tuple[str, ...]
    beside: tuple[str, ...] = ()

    @cached_property
    def slots(self) -> dict[str, Tensor]:
        """The tensors of the part."""
        return self.target.under(self.part)

    @cached_property
    def fitting(self) -> int:
        """How many pairs agree in shape, counters left out."""
        return sum(
            self.tensor(name).shape == tuple(self.slots[name].shape) for name in self.pairs if not is_counter(name)
        )

    @cached_property
    def numbered(self) -> bool:
        """Whether the children of the part are numbered, as in nn.Sequential."""
        start = len(self.part) + 1 if self.part else 0
        return any(name[start:].partition(".")[0].isdigit() for name in self.slots)

    @property
    def label(self) -> str:
        """The place in the file: key of the state dict and prefix of the names."""
        return ".".join(part for part in (self.state_dict.key, self.edit.strip) if part)

    def tensor(self, name: str) -> LazyTensor:
        """The file's tensor for a tensor of the model."""
        return self.state_dict[self.pairs[name]]


def find_matches(
    state_dict: StateDict, names: dict[str, str], target: Target, part: str | None, *, order: bool = False
) -> list[Match]:
    """Each promising way to fill the model (or `part` of it) from one state dict, the best fitting first.

    Args:
        state_dict: The state dict.
        names: Name to match -> name in the state dict; they differ where the user gave `rename`.
        target: The model.
        part: Dotted name of the module to fill; found if None.
        order: Whether names are ignored, and tensors are paired in their order.
    """
    if not any(name.rpartition(".")[2] in target.leaves for name in names):
        return []  # an optimizer's moments, for example
    root = part or ""
    own = {name[len(root) + 1 :] if root else name: name for name in target.under(root)}
    found: dict[object, Match] = {}
    shapes = {name: state_dict[source].shape for name, source in names.items()}
    own_shapes = {name: tuple(target.slots[source].shape) for name, source in own.items()}
    if shapes == own_shapes:
        families = [(names, "")]
    elif order:
        families = by_order(names, shapes, own_shapes)
    else:
        families = [*family_names(names), *numbered_children(names, shapes, own_shapes)]
    for edited, family in families:
        for view in views(edited, own, Edit(family=family)):
            for strip, add in _prefixes(state_dict, view, target):
                if part is not None and add:
                    continue
                match = _match(state_dict, view, target, strip, add, root)
                if match.pairs or not strip:
                    found.setdefault((match.part, frozenset(match.pairs.items())), match)
    return sorted(found.values(), key=lambda match: -match.fitting)


def _prefixes(state_dict: StateDict, view: View, target: Target) -> list[tuple[str, str]]:
    file = {name: state_dict[original].shape for name, original in view.file.items()}
    model = {name: tuple(target.slots[original].shape) for name, original in view.model.items()}
    return [("", "")] if file == model else prefix_pairs(file, model)


def _match(state_dict: StateDict, view: View, target: Target, strip: str, add: str, root: str) -> Match:
    pairs, leftover, outside = {}, {}, []
    for name, original in view.file.items():
        if not is_under(name, strip) or name == strip:
            outside.append(original)
            continue
        wanted = _joined(add, name[len(strip) + 1 :] if strip else name)
        if wanted in view.model:
            pairs[view.model[wanted]] = original
        else:
            leftover[_joined(root, wanted)] = original
    edit = view.edit.with_prefixes(strip, add)
    beside = tuple(_beside(state_dict, view, target, strip, add)) if strip and add else ()
    return Match(state_dict, target, edit, _part(view, add, root), root, pairs, leftover, tuple(outside), beside)


def _beside(state_dict: StateDict, view: View, target: Target, strip: str, add: str) -> Iterator[str]:
    """Names in the model, outside the part, that the file has as they are, or where a part of the prefix is away."""
    segments = strip.split(".")
    around = [".".join(segments[:count]) for count in range(len(segments))]
    for name, original in view.file.items():
        if is_under(name, strip):
            continue
        shorter = [name[len(prefix) + 1 :] if prefix else name for prefix in around if is_under(name, prefix)]
        own = next(
            (view.model[wanted] for wanted in shorter if wanted in view.model and not is_under(wanted, add)), None
        )
        if own and not is_counter(own) and tuple(target.slots[own].shape) == state_dict[original].shape:
            yield own


def _part(view: View, add: str, root: str) -> str:
    """The dotted name, in the model, of the module whose edited name is `add`."""
    if not add or not view.edit.unwrap:
        return _joined(root, add)
    original = next(original for name, original in view.model.items() if is_under(name, add))
    segments, kept = original[len(root) + 1 if root else 0 :].split("."), 0
    for position, segment in enumerate(segments):
        kept += segment not in view.edit.unwrap
        if kept == len(add.split(".")):
            return _joined(root, ".".join(segments[: position + 1]))
    return root


def _joined(*pieces: str) -> str:
    return ".".join(piece for piece in pieces if piece)
