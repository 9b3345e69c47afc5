"""Pickles that torch.save did not write: arrays in dictionaries, as detectron2 and its zoo have them.

Large arrays stay in the file. Source: detectron2's checkpoint/detection_checkpoint.py (`{"model": {NAME: array},
"__author__": ..., "matching_heuristics": True}`) and Detectron's zoo (`{"blobs": {NAME: array}}`, written by Python 2).
"""

from typing import Any

from lit_transfer.weights._content import Content
from lit_transfer.weights._errors import WeightsError
from lit_transfer.weights._inert import unpickle
from lit_transfer.weights._layouts import find_state_dicts
from lit_transfer.weights._lazy import SourceFile


def read_pickle(file: SourceFile) -> Content:
    """Read the one pickle of a file, which must hold arrays under names."""
    with file.path.open("rb") as stream:
        root, names = unpickle(stream, file.size, _refuse, file)
        if stream.tell() != file.size:
            raise WeightsError(
                f"{file.path} is a pickle with {file.size - stream.tell():,} bytes after its end: damaged, or several "
                "pickles in a row; load it where it was written and save it with torch.save"
            )
    if not find_state_dicts(root):
        raise WeightsError(
            f"{file.path} is a pickle that torch.save did not write, without arrays under names: load it where it was "
            "written, and save a dictionary of tensors with torch.save"
        )
    return Content(root, "pickle", file, names)


def _refuse(pid: Any) -> Any:
    raise WeightsError("the pickle refers to something outside it: it is a part of a file, or damaged")
