"""Which errors are the user's to mend, and how they read on one line."""

import jsonargparse
from lightning.fabric.utilities.exceptions import MisconfigurationException

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
    while error.__cause__ is not None and isinstance(error.__cause__, _USERS):
        error = error.__cause__
    if not isinstance(error, _USERS):
        return None
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # An error from a DataLoader's worker carries the worker's traceback; its last line is the message.
    if "in DataLoader worker process" in lines[0]:
        return lines[-1].partition(": ")[2] or lines[-1]
    return " ".join(lines)
