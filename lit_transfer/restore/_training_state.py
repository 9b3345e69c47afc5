"""A foreign training checkpoint as a plain value: weights, counters, scores, and moments by parameter name."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from lit_transfer.restore._assign import Shape
from lit_transfer.restore._contents import Contents, Kind, contents_of
from lit_transfer.restore._optimizer import NamedState, by_name
from lit_transfer.restore._plain import number
from lit_transfer.weights import Checkpoint, Entry, Plan, Source, WeightsError, open_checkpoint, plan_weights
from lit_transfer.weights._report import few

EpochMeans: TypeAlias = Literal["finished", "next"]
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class TrainingState:
    """What a training run goes on with, under the names of the model that takes it over.

    Attributes:
        kind: What the file is: "lightning", "dictionary", "module" (pickled whole) or "weights" (alone).
        plan: Which tensor of the file goes where; complete.
        epoch: Epochs done: the number of the epoch that comes next. None if the file does not tell.
        step: Optimizer steps done, or None.
        scores: Name -> score that the file reached.
        optimizer: Moments by parameter name; None without an optimizer's state.
        schedulers: States of the schedulers, as saved.
        scaler: State of the gradient scaler, as saved, or None.
        fresh: Parameters that the file does not fill.
        lost: What the file holds and cannot be carried over, in words.
    """

    kind: Kind
    plan: Plan
    epoch: int | None
    step: int | None
    scores: dict[str, float]
    optimizer: NamedState | None
    schedulers: tuple[Mapping[Any, Any], ...]
    scaler: Mapping[Any, Any] | None
    fresh: tuple[str, ...]
    lost: tuple[str, ...]

    @property
    def is_whole(self) -> bool:
        """Whether every parameter has exactly the file's values, so that its moments keep their meaning."""
        return not self.fresh and not self.plan.of("adapt")

    def __str__(self) -> str:
        moments = f"moments of {len(self.optimizer.states)} parameters" if self.optimizer is not None else "no moments"
        loaded = f"{len(self.plan.of('load', 'adapt'))} tensors of a {self.kind} checkpoint"
        told = "; ".join((self.plan.edit, *self.plan.notes))
        return f"{loaded}; {self.epoch or 0} epochs done, {moments} ({told})"

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The model's state dict with the file's values in it; tensors that it does not fill are the model's own."""
        state = model.state_dict()
        for entry in self.plan.of("load", "adapt"):
            if entry.tensor is not None:
                value = entry.tensor.read()
                state[entry.name] = entry.change.run(value) if entry.change is not None else value
        return state


def read_training_state(
    model: nn.Module,
    source: Source,
    *,
    target: str | None = None,
    key: str | None = None,
    head: Sequence[str] | None = None,
    rename: Mapping[str, str] | None = None,
    epoch_means: EpochMeans = "finished",
    optimizer: Literal["restore", "fresh"] = "restore",
    parameter_names: Sequence[str] | None = None,
) -> TrainingState:
    """Read any training checkpoint for a model; nothing in the file is run, and the model is not changed.

    Args:
        model: The model that training goes on with.
        source: What `open_checkpoint` takes.
        target: See `load_weights`.
        key: See `load_weights`. Of several networks the trained one is taken, never its average.
        head: See `load_weights`.
        rename: See `load_weights`.
        epoch_means: Whether the file's "epoch" is the last one that was finished, or the next one to start with.
        optimizer: "fresh" leaves the optimizer's state out.
        parameter_names: Names of the parameters, as the file's weights have them, in the order in which its optimizer
            lists them; found if not given.

    Raises:
        WeightsError: The file cannot be read or does not fit the model, or its moments contradict its weights.
        FileNotFoundError: There is no such file.
    """
    checkpoint = open_checkpoint(source)
    contents = contents_of(checkpoint)
    if key is None and contents.kind == "lightning":
        key = "state_dict"
    plan = plan_weights(model, checkpoint, target=target, key=key, head=head, rename=rename, prefer="plain")
    plan.check()
    plan = _with_classifier(plan, model, checkpoint)
    named = None
    if optimizer == "restore" and contents.optimizers:
        named = _named(checkpoint, contents, plan, model, parameter_names)
    fresh = _fresh(model, plan)
    lost = contents.unused if contents.kind != "lightning" else ()  # Lightning restores what is its own
    return TrainingState(
        kind=contents.kind,
        plan=plan,
        epoch=_epochs_done(contents, epoch_means),
        step=contents.step if contents.step is not None else _steps_of(named),
        scores=contents.scores or {},
        optimizer=named,
        schedulers=contents.schedulers,
        scaler=contents.scaler,
        fresh=fresh,
        lost=(*lost, f"fresh weights for {few(fresh)}") if fresh else lost,
    )


def _named(
    checkpoint: Checkpoint, contents: Contents, plan: Plan, model: nn.Module, order: Sequence[str] | None
) -> NamedState:
    """The moments under the model's names."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    everyone = dict(model.named_parameters(remove_duplicate=False))
    ours = {e.source: first[id(everyone[e.name])] for e in plan.of("load") if e.source and e.name in everyone}
    buffers = {entry.source for entry in plan.entries if entry.source and entry.name not in everyone}
    theirs = _parameters(checkpoint, plan.key, buffers)
    recorded = [name for optimizer in contents.names or () for group in optimizer for name in group]
    if not all(name in theirs or not name for name in recorded):
        recorded = []  # FSDP2 takes the names of wrappers out of the weights, and not out of the parameters
    try:
        _require_names(order or (), theirs)
        return by_name(contents.optimizers, theirs, order=order or recorded or None).renamed(ours)
    except WeightsError as error:
        raise WeightsError(f"{checkpoint.name}: {error}") from None


def _require_names(order: Sequence[str], names: Mapping[str, Shape]) -> None:
    for name in order:
        if name not in names:
            near = ", ".join(difflib.get_close_matches(name, names, n=3)) or f"they begin with {next(iter(names), '')}"
            raise WeightsError(f"parameter_names: {name!r} is none of the file's weights. Nearest: {near}")


def _parameters(checkpoint: Checkpoint, key: str, buffers: set[str]) -> dict[str, Shape]:
    """Names and shapes of what an optimizer could hold, in the file's order; a tied tensor once."""
    found: dict[object, tuple[str, Shape]] = {}
    for name, tensor in checkpoint.state_dict(key).items():
        if name not in buffers and name.rpartition(".")[2] not in _BUFFERS:
            found.setdefault(tensor.place(), (name, tensor.shape))
    return dict(found.values())


def _epochs_done(contents: Contents, epoch_means: EpochMeans) -> int | None:
    if contents.epoch is None:
        return None
    return contents.epoch + (epoch_means == "finished" and not contents.epoch_is_next)


def _steps_of(named: NamedState | None) -> int | None:
    """The steps that Adam counts."""
    counts = [number(state.get("step")) for state in named.states.values()] if named is not None else []
    return max((int(count) for count in counts if count is not None), default=None)


def _with_classifier(plan: Plan, model: nn.Module, checkpoint: Checkpoint) -> Plan:
    """Pair the one Linear that the plan leaves fresh with the one that it leaves over, if only their names differ.

    A backbone keeps its upstream names, and the classifier that stood behind it has another name here.
    """
    fresh, state_dict = _fresh(model, plan), checkpoint.state_dict(plan.key)
    ours, theirs = ({name.rpartition(".")[0] for name in names} for names in (fresh, plan.unexpected))
    if len(ours) != 1 or len(theirs) != 1 or not isinstance(model.get_submodule(*ours), nn.Linear):
        return plan
    parameters, (place,) = dict(model.named_parameters()), theirs
    entries = []
    for name in fresh:
        source = ".".join(part for part in (place, name.rpartition(".")[2]) if part)
        shape = tuple(parameters[name].shape)
        if source not in plan.unexpected or state_dict[source].shape != shape:
            return plan
        tensor = state_dict[source]
        entries.append(Entry(name, shape, "load", source, shape, tensor.nbytes, tensor=tensor))
    if len(entries) != len(plan.unexpected):
        return plan
    notes = (*plan.notes, f"{', '.join(fresh)} are the file's {', '.join(plan.unexpected)}")
    return replace(plan, entries=(*plan.entries, *entries), unexpected=(), notes=notes)


def _fresh(model: nn.Module, plan: Plan) -> tuple[str, ...]:
    everyone = dict(model.named_parameters(remove_duplicate=False))
    filled = {id(everyone[entry.name]) for entry in plan.of("load", "adapt") if entry.name in everyone}
    return tuple(name for name, parameter in model.named_parameters() if id(parameter) not in filled)
