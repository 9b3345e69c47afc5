"""One run of a module without memory, written down: which module and which parameter is used when, inside what."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

__all__ = ["Call", "Inputs", "Record", "Use", "first_tensor", "record_run"]


# On the meta device torch takes these apart in Python, which is most of a trace's time.
_SHAPE_KEEPING = {F.batch_norm, F.layer_norm, F.group_norm, F.gelu, F.silu}

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a `forward`."""


@dataclass
class Call:
    """The first call of a module: when it began and ended; its first input and output tensors; how often it was called.

    Two calls with one `input_id` took the same tensor, two with one `output_id` gave the same. An output is
    `overwritten` if it is changed in place later on.
    """

    start: int
    end: int
    input_shape: tuple[int, ...] | None = None
    input_id: int | None = None
    output_shape: tuple[int, ...] | None = None
    output_id: int | None = None
    times: int = 1
    overwritten: bool = False


@dataclass(frozen=True)
class Use:
    """A use of a parameter: when, and the names of the modules that were running, the outermost first."""

    time: int
    inside: tuple[str, ...]


@dataclass
class Record:
    """All calls and uses of one run, by dotted name; shapes hold the batch dimension."""

    calls: dict[str, Call] = field(default_factory=dict)
    first_uses: dict[str, Use] = field(default_factory=dict)
    last_uses: dict[str, Use] = field(default_factory=dict)
    input_shape: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = ()


@torch.inference_mode(False)  # its tensors do not tell what was overwritten
def record_run(module: nn.Module, inputs: Inputs, *, for_real: bool = True) -> Record:
    """Run the module in eval mode and write down what it uses; nothing about it or torch's state is changed by this.

    Parameters and buffers are replaced by tensors on the meta device for the run, so that no memory is filled and
    nothing is computed. Where that cannot be (control flow that reads values, kernels without shapes), the module
    is run for real on one sample.

    Args:
        module: Any module whose parameters exist.
        inputs: Positional and keyword arguments of its `forward`; tensors of any device.
        for_real: Whether it may be run for real.

    Raises:
        ValueError: It runs neither way.
    """
    for name, parameter in module.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise ValueError(f"{name} has no shape yet: run {type(module).__name__} once on a batch, then trace it.")
    try:
        return _Recorder(module).run(*_on_meta(module, inputs))
    except Exception as error:
        if not for_real or any(parameter.is_meta for parameter in module.parameters()):
            raise ValueError(_cannot_run(module, inputs, error)) from error
    try:
        return _Recorder(module).run({}, *_for_real(module, inputs))
    except Exception as error:
        raise ValueError(_cannot_run(module, inputs, error)) from error


def _on_meta(module: nn.Module, inputs: Inputs) -> tuple[dict[str, Tensor], tuple[Any, ...], dict[str, Any]]:
    state: dict[str, Tensor] = {
        name: torch.empty_like(tensor, device="meta", requires_grad=False)
        for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers())
    }
    args, kwargs = tree_map_only(Tensor, lambda t: t.to("meta"), inputs)
    return state, args, kwargs


def _for_real(module: nn.Module, inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    like = next(itertools.chain(module.parameters(), module.buffers()), torch.empty(0))

    def sample(tensor: Tensor) -> Tensor:
        if tensor.ndim == 0:
            return tensor.to(like.device)
        one = torch.zeros_like(tensor[:1], device=like.device) if tensor.is_meta else tensor[:1].to(like.device)
        return one.to(like.dtype) if one.is_floating_point() and like.is_floating_point() else one

    args, kwargs = tree_map_only(Tensor, sample, inputs)
    return args, kwargs


def _cannot_run(module: nn.Module, inputs: Any, error: Exception) -> str:
    shapes = ", ".join(str(tuple(t.shape)) for t in _tensors(inputs))
    return (
        f"{type(module).__name__} does not run on input of shape {shapes}: {type(error).__name__}: {error}. Pass the "
        "input_size and in_channels that it takes, or an example as inputs=."
    )


class _Recorder(TorchFunctionMode):
    """Hooks tell which modules run; as a mode over every torch function it sees which parameters they read."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = module
        self._names = dict(module.named_parameters())
        self._by_id: dict[int, str] = {}
        self._inside: list[str] = []
        self._alive: list[Tensor | None] = []
        self._given: list[tuple[Call, Tensor, int]] = []
        self._clock = itertools.count()
        self._record = Record()

    def run(self, state: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Record:
        # Both the parameter and its stand-in are known: an RNN keeps a list of the former.
        self._by_id = {id(tensor): name for name, tensor in self._names.items()}
        self._by_id |= {id(tensor): name for name, tensor in state.items() if name in self._names}
        with _undisturbed(self._module), self._hooks(), torch.no_grad():
            if state:
                with torch.device("meta"), self:
                    out = torch.func.functional_call(self._module, dict(state), args, kwargs)
            else:
                with self:
                    out = self._module(*args, **kwargs)
        self._record.input_shape = _shape((args, kwargs)) or ()
        self._record.output_shape = _shape(out) or ()
        for call, given, version in self._given:
            call.overwritten = given._version != version
        return self._record

    @contextlib.contextmanager
    def _hooks(self) -> Iterator[None]:
        handles = []
        try:
            for name, module in self._module.named_modules():
                if name:
                    handles.append(module.register_forward_pre_hook(self._before(name), with_kwargs=True, prepend=True))
                    handles.append(module.register_forward_hook(self._after(name)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._inside.append(name)
            if name in self._record.calls:
                self._record.calls[name].times += 1
            else:
                first = next(_tensors((args, kwargs)), None)
                self._alive.append(first)  # so that no other tensor gets its id
                identity = None if first is None else id(first)
                self._record.calls[name] = Call(next(self._clock), -1, _shape((args, kwargs)), identity)

        return hook

    def _after(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            while self._inside.pop() != name:  # left behind by a module whose error its caller caught
                pass
            call = self._record.calls[name]
            if call.end < 0:
                call.end, call.output_shape = next(self._clock), _shape(output)
                if (given := first_tensor(output)) is not None:
                    call.output_id = id(given)
                    self._given.append((call, given, given._version))

        return hook

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors((args, kwargs)):
            if name := self._by_id.get(id(tensor)):
                self._note(name)
        if func in _SHAPE_KEEPING and args[0].is_meta and not (kwargs or {}).get("inplace"):
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))

    def _note(self, name: str) -> None:
        use = Use(next(self._clock), tuple(self._inside))
        self._record.first_uses.setdefault(name, use)
        self._record.last_uses[name] = use


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists, dictionaries and dataclasses (model outputs), in their order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from _tensors([getattr(value, f.name) for f in dataclasses.fields(value)])


def first_tensor(value: Any) -> Tensor | None:
    """Return the first tensor with a dimension in nested tuples, lists, dictionaries and dataclasses."""
    return next((tensor for tensor in _tensors(value) if tensor.ndim > 0), None)


def _shape(value: Any) -> tuple[int, ...] | None:
    first = first_tensor(value)
    return None if first is None else tuple(first.shape)


@contextlib.contextmanager
def _undisturbed(module: nn.Module) -> Iterator[None]:
    """Put the module in eval mode; afterwards every attribute, flag and random state is what it was before."""
    kept = [(m, dict(m.__dict__), _contents(m)) for m in module.modules()]
    devices = list({p.device for p in module.parameters() if p.device.type == "cuda"})
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        if "torch._dynamo" in sys.modules:  # a compiled child would not run its own forward, and so no hook
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            # The flags themselves: train() may be overridden, to keep frozen layers in eval mode for one.
            for m, _, _ in kept:
                m.training = False
            yield
        finally:
            for m, attributes, contents in kept:
                m.__dict__.clear()
                m.__dict__.update(attributes)
                for value, content in contents:
                    value.clear()
                    value.extend(content) if isinstance(value, list) else value.update(content)


def _contents(module: nn.Module) -> list[tuple[Any, Any]]:
    """Attributes that a forward may fill in place, such as a cache of position tables, and what they hold now."""
    return [(value, copy.copy(value)) for value in module.__dict__.values() if type(value) in (list, dict)]
