"""A frozen front that runs on a copy made for inference, batch by batch, where its features cannot be stored."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lit_transfer.features._boundary import Boundary, Outline, check_still, first_tensor, frozen_state, outline_of
from lit_transfer.features._checked_copy import Fast, apart, bound_of, checked_copy
from lit_transfer.features._serving import give, take_back
from lit_transfer.features._working_copy import WorkingCopy

__all__ = ["StandIn"]

_SHAPES = 8  # of images for which it is tried: each takes a few runs


class StandIn:
    """Computes the frozen front of a backbone on a copy made for inference, until `remove`.

    The first batch of each shape of images is run on both: where the copy is not the same up to its bound, more than
    one tensor crosses the boundary, or nothing could be folded since the module cannot be traced, the front itself runs
    as ever, and so it does once its parameters train or have changed. The rest of the backbone runs on what the copy
    gives. Random numbers are drawn as without.
    """

    def __init__(
        self, backbone: nn.Module, boundary: Boundary, *, fast: Fast = True, tell: Callable[[str], None]
    ) -> None:
        """Start to stand in.

        Args:
            backbone: The backbone, whose front is frozen.
            boundary: Where that ends.
            fast: How the copy computes.
            tell: Called once, with what was decided and why.
        """
        self._backbone, self._boundary, self._fast, self._tell = backbone, boundary, fast, tell
        self._state = list(frozen_state(backbone, boundary).values())
        self._versions = [tensor._version for tensor in self._state]
        self._outlines: dict[Any, Outline | None] = {}
        self._copied: WorkingCopy | None = None
        self._looks = self._told = False
        self._forwards = give(backbone, boundary, self._find)

    def is_current(self) -> bool:
        """Return whether the front is as it was when this was made: frozen, with the same weights."""
        return self._versions == [tensor._version for tensor in self._state] and not any(
            tensor.requires_grad for tensor in self._state
        )

    def remove(self) -> None:
        """Give every module its own forward back, and drop the copy."""
        take_back(self._forwards)
        self._forwards, self._copied = [], None

    def __deepcopy__(self, memo: dict[int, Any]) -> StandIn:
        made = copy.copy(self)  # for the copy of a module, which runs its own front
        made._looks, made._copied, made._state, made._forwards = True, None, [], []
        return made

    def _find(self, args: Any, kwargs: Any) -> tuple[Outline, Tensor] | None:
        if self._looks or not self.is_current():
            return None
        images = first_tensor(args, kwargs)
        # Compiled for the batches of the training, which are the only ones to have gradients.
        if self._fast == "compile" and self._copied is None and not torch.is_grad_enabled():
            return None
        key = tuple(images.shape[1:]), images.dtype, images.device, torch.is_autocast_enabled(images.device.type)
        if key not in self._outlines and len(self._outlines) < _SHAPES:
            self._outlines[key] = self._look(images, args, kwargs)
        outline = self._outlines.get(key)
        if outline is None or self._copied is None:
            return None
        with torch.no_grad():
            return outline, outline.restored(self._copied(images))

    def _look(self, images: Tensor, args: Any, kwargs: Any) -> Outline | None:
        """Run the backbone and the copy; what crosses the boundary if that gives the same, else None."""
        try:
            check_still(self._backbone, self._boundary)
            with self._looking(images.device):
                run = partial(self._backbone, *args, **kwargs)
                outline, _, feature = outline_of(run, self._backbone, self._boundary)
                self._check_served(outline, feature, args, kwargs)
                why = self._check_copy(images, feature)
        except Exception as error:  # of any kind: the front itself runs as ever
            outline, why = None, f"{type(error).__name__}: {error}"
        if not self._told or outline is None:
            runs = "runs on a copy" if outline else f"runs as it is for images of shape {tuple(images.shape[1:])}"
            self._tell(f"{runs}: {' '.join(why.split())}")
        if len(self._outlines) == _SHAPES - 1:
            self._tell(f"runs as it is for images of any other shape than the first {_SHAPES}")
        self._told = True
        return outline

    def _check_copy(self, images: Tensor, feature: Tensor) -> str:
        """Make the copy, or run the one that is there on images of another shape."""
        if self._copied is None:
            copied, why = checked_copy(self._backbone, self._boundary, images, feature, fast=self._fast)
            if copied is None or copied.unfolded is not None:
                raise ValueError(why)
            self._copied = copied
            return why
        if not (differs := apart(self._copied(images), feature)) <= bound_of(self._fast):
            raise ValueError(f"a copy differs by {differs:.1e}, more than {bound_of(self._fast)}")
        return ""

    def _check_served(self, outline: Outline, feature: Tensor, args: Any, kwargs: Any) -> None:
        direct = self._backbone(*args, **kwargs)
        forwards = give(self._backbone, self._boundary, lambda *_: (outline, feature))
        try:
            served = self._backbone(*args, **kwargs)
        finally:
            take_back(forwards)
        pairs = zip(tree_leaves(direct), tree_leaves(served), strict=True)
        if not all(torch.equal(one, other) if isinstance(one, Tensor) else one == other for one, other in pairs):
            raise ValueError("more than one tensor crosses the boundary")

    @contextmanager
    def _looking(self, device: torch.device) -> Iterator[None]:
        """Run the backbone's own forward, in eval mode, without gradients and undone draws of random numbers."""
        modes = [(part, part.training) for part in self._backbone.modules()]
        devices = [device] if device.type == "cuda" else []
        self._looks = True
        try:
            for part, _ in modes:
                part.training = False
            with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices):
                yield
        finally:
            self._looks = False
            for part, mode in modes:
                part.training = mode
