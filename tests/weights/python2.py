"""Pickles as Python 2 wrote them: text as bytes, protocol 2, the old names of modules."""

import io
import pickle
import struct
import types
from typing import Any


def _save_text(pickler: Any, value: str | bytes) -> None:
    data = value.encode("latin1") if isinstance(value, str) else value
    if len(data) < 256:
        pickler.write(pickle.SHORT_BINSTRING + bytes([len(data)]) + data)
    else:
        pickler.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
    pickler.memoize(value)


class Python2Pickler(pickle._Pickler):
    """Python's own pickler, with the opcodes that Python 2 had for `str`."""


_TABLE: dict[Any, Any] = {**pickle._Pickler.dispatch, str: _save_text, bytes: _save_text}
Python2Pickler.dispatch = _TABLE


def dump(value: Any, stream: Any, protocol: int = 2) -> None:
    Python2Pickler(stream, protocol).dump(value)


def dumps(value: Any) -> bytes:
    stream = io.BytesIO()
    dump(value, stream)
    return stream.getvalue()


# For torch.save(..., pickle_module=PICKLE).
PICKLE = types.SimpleNamespace(Pickler=Python2Pickler, dump=dump, __name__="pickle")
