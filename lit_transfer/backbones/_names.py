"""Errors for names that are not known."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

__all__ = ["is_file_or_url", "unknown_backbone", "unknown_weights"]


def is_file_or_url(weights: str | None, known: Sequence[str]) -> bool:
    """True for a URL, and for a path where a file or folder is, unless it is the name of weights that are known."""
    if weights is None or weights in {"DEFAULT", *known}:
        return False
    return "://" in weights or Path(weights).exists()


def unknown_backbone(name: str, known: Sequence[str]) -> ValueError:
    """Make the error for a backbone that no source has, with the nearest names."""
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    hint = f" Nearest: {', '.join(near)}." if near else ""
    return ValueError(
        f"backbone {name!r} is not known: expected a name of list_backbones(), timm/NAME, hf/ORG/NAME, or a module."
        f"{hint}"
    )


def unknown_weights(weights: str, backbone: str, known: Sequence[str]) -> ValueError:
    """Make the error for weights that are neither the name of any nor a file, with all names and the nearest."""
    near = difflib.get_close_matches(weights, known, n=1, cutoff=0.4)
    hint = f" Nearest: {near[0]}." if near else ""
    names = ", ".join(["DEFAULT", *known]) if known else "none"
    return ValueError(
        f"weights={weights!r}: expected a name, an existing file, a URL, or None for random weights. "
        f"Names for {backbone}: {names}.{hint}"
    )
