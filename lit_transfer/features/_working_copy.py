"""A copy of the frozen front that is made for inference: normalisation folded into convolutions, channels last."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from lit_transfer.features._boundary import Boundary, Outline, run_until
from lit_transfer.features._pieces import in_pieces, pieces
from lit_transfer.features._serving import Serving, unserved

__all__ = ["WorkingCopy"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class WorkingCopy:
    """Computes what a frozen front gives for images, faster, and the same up to rounding.

    It has no hooks, and shares nothing that trains; frozen parameters that neither folding nor the memory layout
    changes, such as those of linear layers, are the backbone's own, and not to be changed in place. What folding,
    compiling and narrower numbers change is to be checked on a real batch, as `lit_transfer.features.checked_copy`
    does: a module whose code looks at its normalisation layers may give something else.

    Attributes:
        folded: How many normalisation layers were folded into the convolution before them.
        unfolded: Why none could be; None if it was tried.
        module: The copied backbone itself.
    """

    def __init__(self, backbone: nn.Module, boundary: Boundary, *, dtype: torch.dtype | None = None) -> None:
        """Copy a backbone whose front is frozen, and fold.

        Args:
            backbone: The backbone.
            boundary: Where its front ends.
            dtype: In which dtype to compute, what comes out being that of the images; None for the backbone's own.
        """
        # Hooks are left out: a bound method of the user's module would have that copied too, trainer and all.
        memo: dict[int, Any] = {
            id(getattr(module, name)): OrderedDict() for module in backbone.modules() for name in _HOOKS
        }
        memo |= _shared(backbone, dtype)
        self.module = unserved(copy.deepcopy(backbone, memo)).requires_grad_(False)
        self._unit, self._dtype = self.module.get_submodule(boundary.unit), dtype
        self._front: fx.GraphModule | None = None  # what leads to the boundary and nothing else
        self._compiled: Callable[[Tensor], Tensor] | None = None
        self._shape: tuple[int, ...] | None = None  # for which it was compiled
        for module in self.module.modules():
            module.training = False
        self.folded, self.unfolded = self._fold(boundary)
        for parameter in self.module.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        for copied in (self.module, self._front):
            if dtype is not None and copied is not None:
                copied.to(dtype)

    def __call__(self, images: Tensor) -> Tensor:
        """Give the features of images as the backbone takes them."""
        return in_pieces(self._run, images, together=self._front is not None and self._compiled is None)

    def _run(self, images: Tensor) -> Tensor:
        given = images.to(self._dtype) if images.is_floating_point() else images
        if given.ndim == 4:
            given = given.contiguous(memory_format=torch.channels_last)
        feature: Tensor
        if self._compiled is not None and given.shape == self._shape:
            feature = self._run_compiled(given)
        elif self._front is not None:
            feature = self._front(given)
        else:
            feature = run_until(lambda: self.module(given), self.module, self._unit)[1]
        return feature if self._dtype is None else feature.to(images.dtype)

    def compile(self, images: Tensor) -> None:
        """Have pieces of batches like this one run on code that is compiled for their shape, weights included.

        Pieces of another shape run as before.

        That takes many seconds, and a C++ compiler on a CPU. The options that torch has for it are changed while it
        compiles only.

        Raises:
            ValueError: The module cannot be traced.
        """
        if self._front is None:
            raise ValueError(self.unfolded or "nothing that leads to the boundary could be cut out")
        # A module of its own, whose code no other one shares: torch keeps what is compiled by code.
        module = fx.GraphModule(self._front, self._front.graph, "Front")
        piece = pieces(images)[0]
        self._compiled, self._shape = torch.compile(module, dynamic=False), tuple(piece.shape)
        try:
            self._run(piece)
        except Exception:
            self._compiled = None
            raise

    def _run_compiled(self, given: Tensor) -> Tensor:
        from torch._inductor import config  # here, since it takes a second

        assert self._compiled is not None
        # Weights become part of the code only without inference mode; in this process, for others would stay.
        with torch.inference_mode(False), torch.no_grad(), config.patch(freezing=True, compile_threads=1):
            return self._compiled(given.clone() if given.is_inference() else given)

    def serve(self, boundary: Boundary, outline: Outline) -> None:
        """Take features at an earlier boundary from now on, as they are carried."""
        Serving(self.module, boundary, outline)
        self._front = self._compiled = None

    def _fold(self, boundary: Boundary) -> tuple[int, str | None]:
        tracer = _Tracer(boundary.unit)
        try:
            graph = tracer.trace(self.module)
        except Exception as error:  # fx raises many kinds where code cannot be traced
            return 0, f"{type(error).__name__}: {error}".splitlines()[0]
        units = tuple(f"{name}." if name else "" for name in (*boundary.before, boundary.unit))
        pairs = [pair for pair in _pairs(graph, dict(self.module.named_modules())) if pair[1].startswith(units)]
        for conv, norm in pairs:
            _fold_into(
                cast("nn.Conv2d", self.module.get_submodule(conv)),
                cast("nn.BatchNorm2d", self.module.get_submodule(norm)),
            )
            _replace(self.module, norm, nn.Identity())
        front = tracer.front(graph)
        self._front = None if front is None else fx.GraphModule(self.module, front)
        return len(pairs), None


def _shared(backbone: nn.Module, dtype: torch.dtype | None) -> dict[int, Any]:
    """Give what a deep copy is to hold in the place of frozen parameters: their own values, or those of the dtype.

    Copies of all of them would take hundreds of megabytes for a vision transformer; and folding makes new weights for
    convolutions anyway, so that copies of the old ones would only leave holes in the process's memory. Convolutions
    and what is folded into them become of the dtype later.
    """
    folded = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)
    given: dict[int, Any] = {}
    for module in backbone.modules():
        for parameter in module.parameters(recurse=False):
            if not parameter.requires_grad:
                values = parameter.detach()
                if dtype is not None and not isinstance(module, folded):
                    values = values.to(dtype)
                # A parameter of its own, so that it alone is given another layout or dtype.
                given[id(parameter)] = nn.Parameter(values, requires_grad=False)
    return given


def _pairs(graph: fx.Graph, modules: dict[str, nn.Module]) -> Iterator[tuple[str, str]]:
    """Yield the names of convolutions and of the norms that alone take what they give, each called only once.

    A convolution that is called twice, or whose output is used elsewhere too, would be silently wrong when folded.
    """
    calls = Counter(id(modules[str(node.target)]) for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        if node.op != "call_module" or type(modules[str(node.target)]) is not nn.BatchNorm2d:
            continue
        conv = node.args[0]
        if not isinstance(conv, fx.Node) or conv.op != "call_module" or len(conv.users) != 1:
            continue
        first, second = modules[str(conv.target)], modules[str(node.target)]
        once = calls[id(first)] == calls[id(second)] == 1
        if type(first) is nn.Conv2d and once and second.running_mean is not None:
            yield str(conv.target), str(node.target)


def _fold_into(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Give a convolution new weights, which do what the norm behind it did too."""
    assert norm.running_mean is not None  # _pairs leaves others out
    assert norm.running_var is not None
    with torch.no_grad():
        scale = torch.rsqrt(norm.running_var + norm.eps)
        if norm.affine:
            scale = scale * norm.weight
        bias = -norm.running_mean * scale if conv.bias is None else (conv.bias - norm.running_mean) * scale
        # Copied once and scaled in place: weights in between would leave holes in the process's memory.
        weight = conv.weight.detach().clone(memory_format=torch.channels_last)
        conv.weight = nn.Parameter(weight.mul_(scale.reshape(-1, 1, 1, 1)), requires_grad=False)
        bias = bias + norm.bias if norm.affine else bias
        conv.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=False)  # a norm may be kept in float32


class _Tracer(fx.Tracer):
    """Notes what comes out of one module when it is called first."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit, self._reached = unit, list[Any]()

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        output = super().call_module(m, forward, args, kwargs)
        if self._unit and self.path_of_module(m) == self._unit:
            self._reached.append(output)
        return output

    def front(self, graph: fx.Graph) -> fx.Graph | None:
        """Cut what was traced behind that module; None where no one tensor comes out there."""
        if not self._unit:
            return graph
        crosses = self._reached[0] if self._reached else None
        if not isinstance(crosses, fx.Proxy):
            return None
        cut, known = fx.Graph(), dict[fx.Node, fx.Node]()
        for node in graph.nodes:
            known[node] = cut.node_copy(node, known.__getitem__)
            if node is crosses.node:
                break
        cut.output(known[crosses.node])
        return cut


def _replace(module: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    module.get_submodule(parent)._modules[child] = new
