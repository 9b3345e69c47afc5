"""argparse with errors of one line, for the commands that need no jsonargparse."""

import argparse
import difflib
import re
from collections.abc import Iterable
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")


def nearest(name: str, known: Iterable[str]) -> str:
    """Give the end of a sentence that names what a wrong name may have meant; empty if nothing is near."""
    near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.5)
    return f" Nearest: {', '.join(near)}." if near else ""


def each_of(given: Any, kind: type[T]) -> list[T]:
    """Give those of a kind among what a Trainer's argument was given: one alone, a list, or True, False or None."""
    each = given if isinstance(given, Iterable) else [given]
    return [item for item in each if isinstance(item, kind)]


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors are raised, so that they are said in one line; a wrong choice gets the nearest."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage.

        Raises:
            ValueError: Always.
        """
        if wrong := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            choices = re.findall(r"[\w-]+", wrong.group(2))
            message = f"{message}.{nearest(wrong.group(1), choices)}"
        elif wrong := re.search(r"unrecognized arguments: (--[\w-]+)", message):
            message = f"{message}.{nearest(wrong.group(1), self._option_string_actions)}"
        raise ValueError(message)
