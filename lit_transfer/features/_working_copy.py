"""A copy of the frozen front that is made for inference: normalisation folded into convolutions, channels last."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lit_transfer.features._boundary import Boundary, Outline, run_until
from lit_transfer.features._serving import Serving, unserved

__all__ = ["WorkingCopy"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class WorkingCopy:
    """Computes what a frozen front gives for images, faster, and the same up to rounding (1e-4 of the largest value).

    It shares nothing with the backbone and has no hooks. What folding changes is to be checked on a real batch: a
    module whose code looks at its normalisation layers may give something else.

    Attributes:
        folded: How many normalisation layers were folded into the convolution before them.
        unfolded: Why none could be; None if it was tried.
    """

    def __init__(self, backbone: nn.Module, boundary: Boundary) -> None:
        """Copy a backbone whose front is frozen, and fold.

        Args:
            backbone: The backbone.
            boundary: Where its front ends.
        """
        # Hooks are left out: a bound method of the user's module would have that copied too, trainer and all.
        memo: dict[int, Any] = {
            id(getattr(module, name)): OrderedDict() for module in backbone.modules() for name in _HOOKS
        }
        self._backbone = unserved(copy.deepcopy(backbone, memo)).requires_grad_(False)
        self._unit = self._backbone.get_submodule(boundary.unit)
        for module in self._backbone.modules():
            module.training = False
        self.folded, self.unfolded = self._fold(boundary)
        self._backbone.to(memory_format=torch.channels_last)

    def __call__(self, images: Tensor) -> Tensor:
        """Give the features of images as the backbone takes them."""
        given = images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images
        feature: Tensor = run_until(lambda: self._backbone(given), self._backbone, self._unit)[1]
        return feature

    def serve(self, boundary: Boundary, outline: Outline) -> None:
        """Take features at an earlier boundary from now on, as they are carried."""
        Serving(self._backbone, boundary, outline)

    def _fold(self, boundary: Boundary) -> tuple[int, str | None]:
        try:
            graph = fx.Tracer().trace(self._backbone)
        except Exception as error:  # fx raises many kinds where code cannot be traced
            return 0, f"{type(error).__name__}: {error}".splitlines()[0]
        units = tuple(f"{name}." if name else "" for name in (*boundary.before, boundary.unit))
        pairs = [pair for pair in _pairs(graph, dict(self._backbone.named_modules())) if pair[1].startswith(units)]
        for conv, norm in pairs:
            fused = fuse_conv_bn_eval(
                cast("nn.Conv2d", self._backbone.get_submodule(conv)),
                cast("nn.BatchNorm2d", self._backbone.get_submodule(norm)),
            )
            _replace(self._backbone, conv, fused)
            _replace(self._backbone, norm, nn.Identity())
        return len(pairs), None


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


def _replace(module: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    module.get_submodule(parent)._modules[child] = new
