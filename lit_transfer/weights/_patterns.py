"""Names chosen by the user: globs or dotted names for include and exclude, regular expressions for rename."""

import difflib
import fnmatch
import re
from collections.abc import Collection, Iterable, Mapping

from lit_transfer.weights._errors import WeightsError
from lit_transfer.weights._target import is_under


def chosen(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name matches a glob, or is a dotted name of the list, or lies below one."""
    return any(is_under(name, pattern) or fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def require_hits(patterns: Iterable[str], names: Collection[str], argument: str) -> None:
    """Raise a WeightsError for a pattern that matches no name."""
    for pattern in patterns:
        if not any(chosen(name, (pattern,)) for name in names):
            near = difflib.get_close_matches(pattern, names, n=3) or list(names)[:3]
            raise WeightsError(f"{argument}={pattern!r} matches no tensor; there are {', '.join(near)} ...")


def renamed(names: Iterable[str], rules: Mapping[str, str]) -> dict[str, str]:
    """New name -> name, after each regular expression was replaced in turn.

    Raises:
        WeightsError: Two names become one.
        re.error: An expression is not valid.
    """
    result: dict[str, str] = {}
    for name in names:
        new = name
        for pattern, replacement in rules.items():
            new = re.sub(pattern, replacement, new)
        if new in result:
            raise WeightsError(f"rename: both {result[new]} and {name} become {new}")
        result[new] = name
    return result


def require_rename_hits(names: Collection[str], rules: Mapping[str, str]) -> None:
    """Raise a WeightsError for an expression of `rename` that matches no name of the file."""
    for pattern in rules:
        if not any(re.search(pattern, name) for name in names):
            raise WeightsError(
                f"rename: {pattern!r} matches no name of the file; it has {', '.join(list(names)[:3])} ..."
            )
