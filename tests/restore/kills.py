"""A child process that kills itself at a chosen call to the operating system."""

import os
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any

CALLS = ("open", "write", "fsync", "replace")  # of `os`: what a writer of files calls


def in_child(action: Callable[[], None]) -> int:
    """Run in a forked child; gives its exit code, negative for the signal that ended it."""
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns of forks beside threads; the child starts none
        child = os.fork()
    if child == 0:
        try:
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at(number: int, *, halfway: bool) -> None:
    """Let this process die at its `number`-th call, before it, or with half of its bytes written, or after it."""
    made = 0

    def wrapped(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal made
            made += 1
            if made == number and halfway:
                if real is write:
                    real(arguments[0], memoryview(arguments[1])[: len(arguments[1]) // 2])
                else:
                    real(*arguments, **options)
            if made == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return call

    write = os.write
    for name in CALLS:
        setattr(os, name, wrapped(getattr(os, name)))
