"""Which errors are the user's to mend, and how they read on one line."""

import re
from collections.abc import Iterable

import jsonargparse
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lit_transfer.cli._parsing import nearest
from lit_transfer.weights import WeightsError

# What our rooms and Lightning raise for wrong input. Anything else is a fault in the code and keeps its traceback.
_USERS = (
    ValueError,
    TypeError,
    OSError,
    ImportError,
    WeightsError,
    MisconfigurationException,
    jsonargparse.ArgumentError,
)


def one_line(error: BaseException) -> str | None:
    """Say an error in one line, or give None if it is not the user's to mend.

    jsonargparse wraps the error of a class that it builds; the innermost one says what is wrong.
    """
    while _is_wrapping(error) and isinstance(error.__cause__, _USERS):
        error = error.__cause__
    if not isinstance(error, _USERS):
        return None
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # An error from a DataLoader's worker carries the worker's traceback; its last line is the message.
    if "in DataLoader worker process" in lines[0]:
        return lines[-1].partition(": ")[2] or lines[-1]
    ended = [line if line[-1] in ".,:;?!" else f"{line}." for line in lines[:-1]]  # rows of a list, one after another
    return " ".join([*ended, lines[-1]])


def _is_wrapping(error: BaseException) -> bool:
    said = str(error).lstrip().startswith(("Parser key", "Does not validate against", "Problem with given"))
    return isinstance(error, jsonargparse.ArgumentError) or said


def in_words(message: str, known: Iterable[str]) -> str:
    """Say what jsonargparse says in one sentence: the option, what was expected and got, and the nearest known names.

    Its own message lists what each member of a union of types answered, over many lines.

    Args:
        message: The text of an `ArgumentError`.
        known: Names of options, arguments and classes that may have been meant.
    """
    # An argument of a callback is tried on the base class too, which has none.
    message = re.sub(
        r"- Problem with given class_path 'lightning[\w.]*\.Callback':\s+Option '\w+' is not accepted", "", message
    )
    key = ".".join(re.findall(r'Parser key "([\w.]+)"', message))
    if found := re.search(r"Option '([\w.]+)' is not accepted", message):
        return f"--{key}.{found[1]} is no option.{nearest(found[1], known)}"
    if found := re.search(r"nrecognized arguments: (--)?([\w.]+)", message):
        return f"{found[1] or ''}{found[2]} is no option.{nearest(found[2], known)}"
    if found := re.search(r"the following arguments are required: ([\w, ]+?)(?:\s+-|\s*$)", message):
        return f"{' and '.join(f'--{key}.{name}' for name in found[1].split(', '))} must be given."
    wanted = re.findall(r"Expected a (?:<class '([\w.]+)'>|typing\.(Literal\[.*?\]))", message)
    types = dict.fromkeys(name or literal for name, literal in wanted if name != "NoneType")
    # An argument of a class is given as NestedArg(key='loss', val='focla').
    got = re.search(r"Given value: (?:NestedArg\(key='[\w.]+', val=)?(?:'([^']*)'|([^\s)]+))", message)
    if types and got:
        value = got[1] or got[2]
        literals = re.findall(r"'([\w-]+)'", " ".join(types))
        return f"--{key} must be {' or '.join(types)}, got {value!r}.{nearest(value, literals)}"
    if found := re.search(r"Expected a dot import path string: (\S+)", message):
        return (
            f"--{key}: no class is called {found[1]!r}; give a class that is imported, or its full path."
            f"{nearest(found[1], known)}"
        )
    return message
