"""A backbone that goes on from stored features, where it took images."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lit_transfer.features._boundary import Boundary, Dummy, Outline, first_tensor

__all__ = ["Serving"]


class Serving:
    """Makes a backbone take features where it took images, until `remove`.

    A batch of the shape `outline.carried` is a feature: the boundary's unit gives it, and the units before it give
    dummies of the right shape, so that the code around them runs as ever. Any other batch runs as before. Forwards are
    replaced on the instances: parameters, names and hooks stay, and a deep copy of the module serves itself.
    """

    def __init__(self, backbone: nn.Module, boundary: Boundary, outline: Outline) -> None:
        self.outline = outline
        self._feature: list[Tensor] = []  # what is being served, while the backbone runs
        self._forwards: list[_Forward] = [_Backbone(backbone, self._feature, outline, whole=not boundary.unit)]
        if boundary.unit:
            units = [(backbone.get_submodule(name), dummy) for name, dummy in outline.skipped.items()]
            units.append((backbone.get_submodule(boundary.unit), None))
            self._forwards += [_Unit(module, self._feature, dummy) for module, dummy in units]
        for forward in self._forwards:
            forward.module.__dict__["forward"] = forward

    def remove(self) -> None:
        """Give every module its own forward back."""
        for forward in reversed(self._forwards):
            forward.restore()
        self._forwards = []


class _Forward:
    """In the place of one module's forward."""

    def __init__(self, module: nn.Module, feature: list[Tensor]) -> None:
        self.module, self.feature = module, feature
        self.replaced: Callable[..., Any] | None = module.__dict__.get("forward")

    def original(self, *args: Any, **kwargs: Any) -> Any:
        if self.replaced is not None:
            return self.replaced(*args, **kwargs)
        return type(self.module).forward(self.module, *args, **kwargs)

    def restore(self) -> None:
        if self.module.__dict__.get("forward") is self:
            del self.module.__dict__["forward"]
            if self.replaced is not None:
                self.module.__dict__["forward"] = self.replaced


class _Backbone(_Forward):
    def __init__(self, module: nn.Module, feature: list[Tensor], outline: Outline, *, whole: bool) -> None:
        super().__init__(module, feature)
        self.outline, self.whole = outline, whole

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = first_tensor(args, kwargs)
        if tuple(given.shape[1:]) != self.outline.carried:
            return self.original(*args, **kwargs)
        feature = self.outline.restored(given)
        if self.whole:
            return feature
        image = Dummy(self.outline.image, given.dtype).like(given)
        args, kwargs = tree_map_only(Tensor, lambda t: image if t is given else t, (args, kwargs))
        with self._served(feature):
            return self.original(*args, **kwargs)

    @contextlib.contextmanager
    def _served(self, feature: Tensor) -> Iterator[None]:
        self.feature.append(feature)
        try:
            yield
        finally:
            self.feature.pop()


class _Unit(_Forward):
    def __init__(self, module: nn.Module, feature: list[Tensor], dummy: Any) -> None:
        super().__init__(module, feature)
        self.dummy = dummy

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.feature:
            return self.original(*args, **kwargs)
        feature = self.feature[-1]
        return feature if self.dummy is None else tree_map_only(Dummy, lambda d: d.like(feature), self.dummy)
