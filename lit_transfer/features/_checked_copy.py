"""A working copy that was held to its bound on a real batch, and what there is to tell of it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from lit_transfer.features._boundary import Boundary, Outline
from lit_transfer.features._pieces import pieces
from lit_transfer.features._working_copy import WorkingCopy

__all__ = ["Fast", "apart", "bound_of", "check_compiler", "checked_copy"]

Fast = Literal["compile", "bfloat16"] | bool
"""How a working copy computes: True folded and channels last, "compile" compiled too, "bfloat16" in that dtype."""


def bound_of(fast: Fast) -> float:
    """Return how far what a working copy gives may be from what the front gives, relative to the largest value.

    Of bfloat16, at the boundaries of seven architectures of torchvision, 0.3e-2 to 1.6e-2 were measured, but for
    SqueezeNet, with up to 3.4e-2.
    """
    return 4e-2 if fast == "bfloat16" else 1e-4


def apart(features: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest value that was expected."""
    one, other = features.double(), expected.double()
    return float((one - other).abs().max() / other.abs().max().clamp(min=1e-30))


def checked_copy(
    backbone: nn.Module,
    boundary: Boundary,
    images: Tensor,
    features: Tensor,
    *,
    fast: Fast = True,
    batch_size: int | None = None,
    served: tuple[Boundary, Outline] | None = None,
    known: WorkingCopy | None = None,
) -> tuple[WorkingCopy | None, str]:
    """Copy a frozen front for inference, and compare what the copy gives for real images.

    Args:
        backbone: The backbone.
        boundary: Where its front ends.
        images: Real images as the backbone takes them; with `served` features, as they are carried.
        features: What the front gives for them.
        fast: How the copy computes.
        batch_size: Images in the batches for which it is compiled; None for as many as there are images.
        served: An earlier boundary, from which the copy is to go on, and what crosses there. It is not compiled then.
        known: A copy that was made so before, to be compared only.

    Returns:
        The copy, or None where it is not the same; and what was done, or why not.
    """
    try:
        if known is not None:
            return _held(known, images, features, fast, "the same one")
        copied = WorkingCopy(backbone, boundary, dtype=torch.bfloat16 if fast == "bfloat16" else None)
        if served is not None:
            copied.serve(*served)
        how = [f"{copied.folded} normalisation layers folded"]
        if copied.unfolded is not None:
            how.append(f"none could be: {copied.unfolded}")
        if fast == "bfloat16":
            how.append("in bfloat16")
        if fast == "compile":
            images = images.repeat(-(-(batch_size or 0) // len(images)) or 1, *[1] * (images.ndim - 1))[:batch_size]
            how.append(_compiled(copied, images, whole=served is None))
        return _held(copied, images, features, fast, ", ".join(how))
    except Exception as error:  # of any kind: a module that cannot be copied is run as it is
        return None, f"{type(error).__name__}: {error}"


def _held(
    copied: WorkingCopy, images: Tensor, features: Tensor, fast: Fast, told: str
) -> tuple[WorkingCopy | None, str]:
    """Hold a copy to its bound."""
    differs = apart(copied(images)[: len(features)], features[: len(images)])
    if not differs <= bound_of(fast):
        return None, f"a copy differs by {differs:.1e} of the largest value, more than {bound_of(fast)}"
    return copied, told


def _compiled(copied: WorkingCopy, images: Tensor, *, whole: bool) -> str:
    if not whole:
        return "not compiled, since it goes on from stored features"
    try:
        copied.compile(images)
    except Exception as error:  # of many kinds, from tracing to the compiler
        return f"not compiled: {type(error).__name__}: {error}".splitlines()[0]
    return f"compiled for batches of {len(pieces(images)[0])}"


def check_compiler() -> None:
    """Refuse to compile on a machine that has no C++ compiler.

    Raises:
        FileNotFoundError: There is none; it says what to do.
    """
    from torch._inductor import cpp_builder, exc  # here, since they take a second

    try:
        cpp_builder.get_cpp_compiler()
    except (exc.InvalidCxxCompiler, RuntimeError) as error:
        raise FileNotFoundError(
            "fast='compile' needs a C++ compiler, and none was found: install g++ or clang++, name one by the "
            "environment variable CXX, or choose fast=True."
        ) from error
