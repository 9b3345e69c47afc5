"""Where the state dicts are in a checkpoint's content: dictionaries of tensors at any depth, and pickled modules."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lit_transfer.weights._caffe2 import detectron2_names, is_caffe2
from lit_transfer.weights._errors import WeightsError
from lit_transfer.weights._flax import is_flax, torch_arrays
from lit_transfer.weights._lazy import LazyTensor
from lit_transfer.weights._patterns import chosen, require_hits
from lit_transfer.weights._stand_ins import InertDict, StandIn, as_tensor

MAX_DEPTH = 60
MAX_NODES = 1_000_000


@dataclass(frozen=True, eq=False)
class StateDict(Mapping[str, LazyTensor]):
    """A dictionary of tensors in a file: names and lazy tensors.

    Attributes:
        key: Its dotted place in the file; "" at the top.
        tensors: The names and tensors.
        kind: Whether it was saved as a dictionary, or is a pickled module.
        metadata: The modules' versions (`_metadata`), by module.
    """

    key: str
    tensors: dict[str, LazyTensor]
    kind: Literal["state dict", "module"] = "state dict"
    metadata: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> LazyTensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def selected(self, include: Sequence[str] | None = None, exclude: Sequence[str] | None = None) -> "StateDict":
        """The part of it that `include` names and `exclude` does not.

        Args:
            include: Globs or dotted names; all if not given.
            exclude: Globs or dotted names.

        Raises:
            WeightsError: A pattern matches no name.
        """
        require_hits(include or (), self.tensors, "include")
        require_hits(exclude or (), self.tensors, "exclude")
        kept = {
            name: tensor
            for name, tensor in self.items()
            if (not include or chosen(name, include)) and not chosen(name, exclude or ())
        }
        return replace(self, tensors=kept)


def is_optimizer_state(found: StateDict) -> bool:
    """Whether this is, or lies in, an optimizer's state: its place in the file says so."""
    return any("optim" in part.lower() for part in found.key.split("."))


def find_state_dicts(root: Any) -> tuple[StateDict, ...]:
    """Each dictionary that holds tensors under names, and each pickled module, in the order of the file."""
    search = _Search()
    search.visit(root, (), 0)
    return tuple(search.found)


class _Search:
    """One walk through a content. Each container is visited once, so that cycles end."""

    def __init__(self) -> None:
        self.found: list[StateDict] = []
        self.seen: set[int] = set()

    def visit(self, value: Any, path: tuple[str, ...], depth: int) -> None:
        if not isinstance(value, dict | list | tuple | StandIn) or id(value) in self.seen or depth > MAX_DEPTH:
            return
        self.seen.add(id(value))
        _bounded(len(self.seen))
        if _module_state(value) is not None:
            self._module(value, path)
            return
        if isinstance(value, dict):
            self._dictionary(value, path)
        for name, child in _children(value):
            self.visit(child, (*path, name) if name else path, depth + 1)

    def _dictionary(self, value: dict[Any, Any], path: tuple[str, ...]) -> None:
        tensors = {name: t for name, item in _items(value) if (t := as_tensor(item)) is not None}
        if is_flax(tensors):
            tensors = torch_arrays(tensors)
        elif is_caffe2(tensors):
            tensors = detectron2_names(tensors)
        if tensors:
            attributes = value.attributes if isinstance(value, InertDict) else {}
            self.found.append(StateDict(".".join(path), tensors, metadata=_versions(attributes.get("_metadata"))))

    def _module(self, value: Any, path: tuple[str, ...]) -> None:
        tensors = dict(_module_tensors(value, "", [], [0]))
        if tensors:
            self.found.append(StateDict(".".join(path), tensors, kind="module"))
        for module in _submodules(value):
            self.seen.add(id(module))


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((str(name) if isinstance(name, str | int) else "?", child) for name, child in value.items())
    elif isinstance(value, StandIn):
        yield "", value.items
        yield "", value.state
        yield "", value.args
        yield "", value.elements
    else:
        yield from ((str(i), child) for i, child in enumerate(value))


def _module_state(value: Any) -> dict[Any, Any] | None:
    """The `__dict__` of a pickled module; None for anything else. A traced graph keeps it as its first argument."""
    if not isinstance(value, StandIn):
        return None
    first = value.args[0] if value.args else None
    for state in (value.attributes, first):
        if isinstance(state, dict) and isinstance(state.get("_modules"), dict):
            return state
    return value.attributes if value.name.startswith("__torch__.") else None


def _module_tensors(module: Any, prefix: str, above: list[int], count: list[int]) -> Iterator[tuple[str, LazyTensor]]:
    """What `state_dict()` of the module would give: parameters, then persistent buffers, then the children's."""
    if id(module) in above or len(above) > MAX_DEPTH:
        raise WeightsError("a pickled module contains itself")
    own, children = _parts(_module_state(module) or {})
    count[0] += len(own) + len(children) + 1
    _bounded(count[0])
    for name, tensor in own:
        if (lazy := as_tensor(tensor)) is not None:
            yield prefix + name, lazy
    for name, child in children:
        if _module_state(child) is not None:
            yield from _module_tensors(child, f"{prefix}{name}.", [*above, id(module)], count)


def _parts(state: dict[Any, Any]) -> tuple[list[tuple[str, Any]], list[tuple[str, Any]]]:
    """(parameters and persistent buffers, children) of a module's `__dict__`."""
    if "_modules" not in state:  # TorchScript: all of them are plain attributes
        return _items(state), _items(state)
    transient = _names_of_set(state.get("_non_persistent_buffers_set"))
    buffers = [(name, tensor) for name, tensor in _items(state.get("_buffers")) if name not in transient]
    return _items(state.get("_parameters")) + buffers, _items(state.get("_modules"))


def _submodules(module: Any) -> list[Any]:
    known = {id(module)}
    found = [module]
    for parent in found:
        for _, child in _parts(_module_state(parent) or {})[1]:
            if _module_state(child) is not None and id(child) not in known:
                known.add(id(child))
                found.append(child)
    return found


def _items(value: Any) -> list[tuple[str, Any]]:
    return [(name, item) for name, item in value.items() if isinstance(name, str)] if isinstance(value, dict) else []


def _names_of_set(value: Any) -> set[str]:
    if not isinstance(value, StandIn):
        return set()
    members = [*value.elements, *(value.args[0] if value.args and isinstance(value.args[0], list | tuple) else ())]
    return {member for member in members if isinstance(member, str)}


def _versions(value: Any) -> dict[str, dict[str, Any]]:
    """`_metadata` of a state dict: module name -> {"version": n}."""
    return {name: dict(entry) for name, entry in _items(value) if isinstance(entry, dict)}


def _bounded(count: int) -> None:
    if count > MAX_NODES:
        raise WeightsError(f"the checkpoint has more than {MAX_NODES:,} parts: no checkpoint is like that")
