"""The one error that reading, matching and loading of weights raises."""

from collections.abc import Iterator
from contextlib import contextmanager


class WeightsError(ValueError):
    """A checkpoint cannot be read, does not fit, or is refused; the model is untouched."""


@contextmanager
def named(name: str) -> Iterator[None]:
    """Put the name of the tensor in front of what is wrong with it."""
    try:
        yield
    except WeightsError as error:
        raise WeightsError(f"{name}: {error}") from error
