"""Memory that was freed, and that the C library keeps all the same."""

import ctypes
import math
import sys
from collections.abc import Callable
from functools import lru_cache
from time import monotonic

__all__ = ["HeapTrimming"]


class HeapTrimming:
    """Gives freed memory back to the system, at most so often; does nothing where the C library is not glibc.

    Each layer takes some large buffer and frees it. Small objects of the rest of the program settle in the holes, so
    that the next buffers are put above them and the heap grows, by a hundred megabytes for a ResNet-18, which workers
    that are forked then inherit.
    """

    def __init__(self, seconds: float = 0.5) -> None:
        """Remember how long to wait between two times."""
        self._seconds, self._last = seconds, -math.inf

    def __call__(self) -> None:
        """Give back, if the last time was long enough ago; that takes some milliseconds."""
        trim = _malloc_trim()
        if trim is not None and monotonic() - self._last >= self._seconds:
            trim(0)
            self._last = monotonic()


@lru_cache
def _malloc_trim() -> Callable[[int], int] | None:
    """Find glibc's function (malloc_trim(3)); musl and other systems have none."""
    if not sys.platform.startswith("linux"):
        return None
    found: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return found
