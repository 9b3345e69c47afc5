"""What chosen modules give during a run of the whole."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from torch import nn

__all__ = ["noted"]


@contextlib.contextmanager
def noted(module: nn.Module, units: Mapping[str, str], keep: Callable[[str, Any], Any]) -> Iterator[dict[str, Any]]:
    """Inside, note what modules give; their hooks are gone afterwards.

    Args:
        module: What is run inside.
        units: The dotted name of a module of it, for each key.
        keep: Makes of a key and an output what is noted of it.

    Yields:
        A dictionary that fills as the modules run; of a module that is called again, the last output counts.
    """
    seen: dict[str, Any] = {}
    handles = []
    try:
        for key, name in units.items():
            handles.append(module.get_submodule(name).register_forward_hook(partial(_note, seen, key, keep)))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _note(
    seen: dict[str, Any], key: str, keep: Callable[[str, Any], Any], module: nn.Module, args: Any, output: Any
) -> None:
    seen[key] = keep(key, output)
