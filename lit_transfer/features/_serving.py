"""A backbone that goes on from stored features, where it took images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lit_transfer.features._boundary import Boundary, Dummy, Outline, first_tensor

__all__ = ["Find", "Serving", "give", "take_back", "unserved"]

Find = Callable[[Any, Any], "tuple[Outline, Tensor] | None"]
"""Gives, for the arguments of the backbone, what crosses the boundary and how; None to run the backbone as it is."""


class Serving:
    """Makes a backbone take features where it took images, until `remove`.

    A batch of the shape in which an outline carries features is one: the boundary's unit gives it, and the units before
    it give dummies of the right shape, so that the code around them runs as ever. Any other batch runs as before.
    Forwards are replaced on the instances: parameters, names and hooks stay, and a deep copy of the module serves
    itself.
    """

    def __init__(self, backbone: nn.Module, boundary: Boundary, outline: Outline) -> None:
        """Start to serve.

        Args:
            backbone: The backbone, whose front is frozen.
            boundary: Where that ends.
            outline: What crosses there.
        """
        self._outlines = [outline]
        self._forwards = give(backbone, boundary, self._find)

    def _find(self, args: Any, kwargs: Any) -> tuple[Outline, Tensor] | None:
        given = first_tensor(args, kwargs)
        outline = next((one for one in self._outlines if tuple(given.shape[1:]) == one.carried), None)
        return None if outline is None else (outline, outline.restored(given))

    def add(self, outline: Outline) -> None:
        """Serve features of another shape too, such as those of larger images."""
        self._outlines.append(outline)

    def remove(self) -> None:
        """Give every module its own forward back."""
        take_back(self._forwards)
        self._forwards = []


def give(backbone: nn.Module, boundary: Boundary, find: Find) -> list[_Forward]:
    """Have the unit at a boundary give what is found for the arguments of its backbone, and those before it dummies.

    Returns:
        What `take_back` takes.
    """
    served = _Served()
    forwards: list[_Forward] = [_Backbone(backbone, served, find, whole=not boundary.unit)]
    for name, module in boundary.units(backbone) if boundary.unit else ():
        forwards.append(_Unit(module, served, None if name == boundary.unit else name))
    for forward in forwards:
        forward.module.__dict__["forward"] = forward
    return forwards


def take_back(forwards: list[_Forward]) -> None:
    """Give every module its own forward back."""
    for forward in reversed(forwards):
        forward.restore()


def unserved(module: nn.Module) -> nn.Module:
    """Give a copy of a module that serves features its own forwards back, which take images."""
    for part in module.modules():
        if isinstance(forward := part.__dict__.get("forward"), _Forward):
            forward.restore()
    return module


@dataclass
class _Served:
    """What is being served while the backbone runs."""

    feature: Tensor | None = None
    outline: Outline | None = None


class _Forward:
    """In the place of one module's forward."""

    def __init__(self, module: nn.Module, served: _Served) -> None:
        self.module, self.served = module, served
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
    def __init__(self, module: nn.Module, served: _Served, find: Find, *, whole: bool) -> None:
        super().__init__(module, served)
        self.find, self.whole = find, whole

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        found = self.find(args, kwargs)
        if found is None:
            return self.original(*args, **kwargs)
        outline, feature = found
        if self.whole:
            return feature
        given = first_tensor(args, kwargs)
        image = Dummy(outline.image, given.dtype).like(given)
        args, kwargs = tree_map_only(Tensor, lambda t: image if t is given else t, (args, kwargs))
        self.served.feature, self.served.outline = feature, outline
        try:
            return self.original(*args, **kwargs)
        finally:
            self.served.feature = self.served.outline = None


class _Unit(_Forward):
    def __init__(self, module: nn.Module, served: _Served, skipped: str | None) -> None:
        super().__init__(module, served)
        self.skipped = skipped

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        feature, outline = self.served.feature, self.served.outline
        if feature is None or outline is None:
            return self.original(*args, **kwargs)
        if self.skipped is None:
            return feature
        return tree_map_only(Dummy, lambda dummy: dummy.like(feature), outline.skipped[self.skipped])
