"""An optimizer's state by the names of its parameters: out of an old file, and into whatever groups a new run has."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch.optim import Optimizer

from lit_transfer.restore._assign import Key, Shape, assign
from lit_transfer.restore._plain import is_tensor, plain_value
from lit_transfer.weights import WeightsError
from lit_transfer.weights._report import few

# The moments of SGD, and of Adam and AdamW. Each has the shape of its parameter.
_MOMENTS = ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")
# How a step is computed, not what it computes: the new run's own choice.
_OWN = {"params", "param_names", "name", "foreach", "fused", "capturable", "differentiable"}


@dataclass(frozen=True)
class NamedState:
    """The state of the optimizers of a file, by parameter.

    Attributes:
        family: "SGD", "Adam" or "AdamW"; "Adam or AdamW" from a torch before 2.7, which does not tell; else "".
        states: Parameter -> its state; tensors may not be read yet.
        groups: Parameter -> number of its group, counted through all optimizers.
        options: The options of each group.
    """

    family: str
    states: dict[str, dict[Any, Any]]
    groups: dict[str, int]
    options: tuple[dict[str, Any], ...]

    def renamed(self, names: Mapping[str, str]) -> "NamedState":
        """The same under other names; parameters without a new name are left out."""
        states = {names[name]: state for name, state in self.states.items() if name in names}
        groups = {names[name]: group for name, group in self.groups.items() if name in names}
        return NamedState(self.family, states, groups, self.options)


def family_of(options: Mapping[str, Any]) -> str:
    """Which optimizer writes such options into its groups; "" for none that is known here."""
    if {"momentum", "dampening", "nesterov"} <= options.keys():
        return "SGD"
    if not {"betas", "eps", "amsgrad"} <= options.keys():
        return ""
    decoupled = options.get("decoupled_weight_decay")
    return "Adam or AdamW" if decoupled is None else "AdamW" if decoupled else "Adam"


def by_name(
    optimizers: Sequence[Mapping[Any, Any]], names: Mapping[str, Shape], *, order: Sequence[str] | None = None
) -> NamedState:
    """Tell for each parameter which state it has.

    Args:
        optimizers: What `Optimizer.state_dict()` gave, one for each optimizer; tensors may not be read yet.
        names: Parameter -> shape, in the order of the old model.
        order: The parameters in the order in which the groups list them, where that is known.

    Returns:
        The states by name.

    Raises:
        WeightsError: Moments have another shape than their parameter, or which parameter they belong to is not clear.
    """
    numbered = [(number, group) for number, state in enumerate(optimizers) for group in state["param_groups"]]
    groups = [group for _, group in numbered]
    options = tuple({k: plain_value(v, []) for k, v in group.items() if k not in _OWN} for group in groups)
    families = {family_of(group) for group in groups}
    if len(families) != 1 or "" in families:
        return NamedState("", {}, {}, options)
    keys = [[(number, key) for key in group["params"]] for number, group in numbered]
    states = {key: optimizers[key[0]]["state"].get(key[1]) or {} for key in chain(*keys)}
    shapes = {key: shape for key, state in states.items() if (shape := _shape(key[1], state)) is not None}
    order = order or _recorded(groups, names)
    found = _in_given_order(keys, shapes, names, order) if order else assign(keys, shapes, names)
    of_group = {key: number for number, group in enumerate(keys) for key in group}
    return NamedState(
        families.pop(),
        {name: states[key] for key, name in found.items() if key in shapes},
        {name: of_group[key] for key, name in found.items()},
        options,
    )


def for_optimizers(
    saved: NamedState, optimizers: Sequence[Optimizer], names: Mapping[int, str]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Make the state dicts that put the saved state into the groups of a new run.

    Options of a group (rate, decay, betas ...) come from the file, as `Optimizer.load_state_dict` would have it; but
    where the new run's groups differ in an option and the file's do not, the new run's difference is meant and stays.

    Args:
        saved: The states by name.
        optimizers: The new run's optimizers.
        names: `id()` of a parameter -> its name.

    Returns:
        One state dict for each optimizer, empty if nothing can be carried over; and what to tell.
    """
    families = {family_of(group) for optimizer in optimizers for group in optimizer.param_groups}
    family = families.pop() if len(families) == 1 else ""
    if not saved.family or not _same(saved.family, family):
        theirs, ours = saved.family or "another kind", family or ", ".join(type(o).__name__ for o in optimizers)
        return [], [f"the optimizer's state: the file's is {theirs}, this run's {ours}"]
    told: list[str] = []
    made = [_state_dict(saved, optimizer, names, told) for optimizer in optimizers]
    parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    held = [names.get(id(p), "a parameter outside the module") for p in parameters if p.requires_grad]
    if saved.states and (fresh := [name for name in held if name not in saved.states]):
        told.append(f"fresh moments for {few(fresh)}")
    everyone = {names.get(id(p)) for p in parameters}
    if left := [name for name in saved.states if name not in everyone]:
        told.append(f"moments of {few(left)}, which this run's optimizers do not hold")
    return made, told


def group_map(saved: NamedState, members: Iterable[Iterable[str]]) -> list[int | None]:
    """For each group of names, the number of the group that all of them had in the file; None if there is none."""
    return [_agreed({saved.groups[name] for name in names if name in saved.groups}) for names in members]


def is_as_saved(
    saved: Mapping[Any, Any], optimizer: Optimizer, names: Mapping[int, str], recorded: Sequence[Sequence[str]] | None
) -> bool:
    """Whether `optimizer.load_state_dict(saved)` gives each parameter its own state.

    Args:
        saved: A state dict.
        optimizer: The optimizer to fill.
        names: `id()` of a parameter -> its name.
        recorded: The names of the parameters of each saved group, where the file tells them.
    """
    groups, theirs = optimizer.param_groups, saved["param_groups"]
    if [len(group["params"]) for group in groups] != [len(group["params"]) for group in theirs]:
        return False
    if recorded is not None and [[names.get(id(p), "") for p in group["params"]] for group in groups] != list(recorded):
        return False
    return all(_group_fits(saved["state"], old, group) for group, old in zip(groups, theirs, strict=True))


def _group_fits(states: Mapping[Any, Any], old: Mapping[Any, Any], group: Mapping[str, Any]) -> bool:
    if not _same(family_of(old), family_of(group)) or (not family_of(old) and not _same_options(old, group)):
        return False
    shapes = [_shape(key, states.get(key, {})) for key in old["params"]]
    return all(s in (None, tuple(p.shape)) for s, p in zip(shapes, group["params"], strict=True))


def _state_dict(saved: NamedState, optimizer: Optimizer, names: Mapping[int, str], told: list[str]) -> dict[str, Any]:
    made: dict[str, Any] = optimizer.state_dict()
    groups = [[names.get(id(p), "") for p in group["params"]] for group in optimizer.param_groups]
    _set_options(saved, made["param_groups"], groups, told)
    made["state"] = {}
    for group, parameters, members in zip(made["param_groups"], optimizer.param_groups, groups, strict=True):
        for key, parameter, name in zip(group["params"], parameters["params"], members, strict=True):
            if name in saved.states:
                _require_shape(name, saved.states[name], tuple(parameter.shape))
                made["state"][key] = plain_value(saved.states[name], [])
    return made


def _set_options(saved: NamedState, groups: list[dict[str, Any]], members: list[list[str]], told: list[str]) -> None:
    before = [dict(group) for group in groups]
    for option in sorted(groups[0].keys() - _OWN | {"initial_lr"}):
        theirs = [_agreed(options.get(option) for options in _options_of(saved, names)) for names in members]
        ours = [group.get("lr" if option.endswith("_lr") else option) for group in before]
        if any(value != ours[0] for value in ours) and _agreed(o.get(option) for o in saved.options) is not None:
            if not option.endswith("_lr"):
                told.append(f"{option}={theirs[0]} of the file: this run's groups have their own")
            continue
        for group, value in zip(groups, theirs, strict=True):
            if value is not None:
                group[option] = value


def _options_of(saved: NamedState, names: Iterable[str]) -> list[dict[str, Any]]:
    """The options that the parameters had; those of all groups where the file does not tell which was theirs."""
    numbers = {saved.groups[name] for name in names if name in saved.groups}
    return [saved.options[number] for number in numbers] or list(saved.options)


def _agreed(values: Iterable[Any]) -> Any:
    """The value that all have; None if they differ or there is none."""
    listed = list(values)
    return listed[0] if listed and all(value == listed[0] for value in listed) else None


def _same(one: str, other: str) -> bool:
    return one == other or (one.startswith("Adam") and other.startswith("Adam") and "Adam or AdamW" in (one, other))


def _same_options(one: Mapping[Any, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() - _OWN - {"initial_lr"} == other.keys() - _OWN - {"initial_lr"}


def _recorded(groups: Sequence[Mapping[Any, Any]], names: Mapping[str, Shape]) -> list[str] | None:
    """The names that the file itself gives, as its weights call them.

    torch keeps names if an optimizer was made with named parameters; torch.distributed.checkpoint has them for keys.
    """
    listed = [name for group in groups for name in group.get("param_names") or group["params"]]
    prefix = next(iter(names), "").partition(".")[0]
    for known in (listed, [f"{prefix}.{name}" for name in listed]):
        if known and all(name in names for name in known):
            return [str(name) for name in known]
    return None


def _in_given_order(
    groups: Sequence[Sequence[Key]],
    shapes: Mapping[Key, Shape],
    names: Mapping[str, Shape],
    order: Sequence[str],
) -> dict[Key, str]:
    keys = [key for group in groups for key in group]
    if len(order) != len(keys):
        raise WeightsError(
            f"{len(order)} parameter names are given, and the file's optimizer has {len(keys)} parameters"
        )
    found = dict(zip(keys, order, strict=True))
    for key, name in found.items():
        if key in shapes and name in names and shapes[key] != names[name]:
            raise WeightsError(_clash(name, shapes[key], names[name]))
    return found


def _shape(key: object, state: Mapping[Any, Any]) -> Shape | None:
    """The shape of a parameter's moments; None without any."""
    found = {tuple(state[name].shape) for name in _MOMENTS if is_tensor(state.get(name))}
    if len(found) > 1:
        raise WeightsError(f"the moments of parameter {key} have different shapes: {sorted(map(list, found))}")
    return found.pop() if found else None


def _require_shape(name: str, state: Mapping[Any, Any], shape: Shape) -> None:
    found = _shape(name, state)
    if found is not None and found != shape:
        raise WeightsError(_clash(name, found, shape))


def _clash(name: str, moments: Shape, parameter: Shape) -> str:
    return (
        f"the moments of {name} have the shape {list(moments)}, and {name} has {list(parameter)}. "
        "optimizer='fresh' leaves all moments out"
    )
