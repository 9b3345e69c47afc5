"""TorchScript archives, read and never run: which of a module's tensors are parameters and buffers.

A pickled module of TorchScript keeps all its tensors alike as attributes; the text of its class, in the archive's
`code/`, lists `__parameters__` and `__buffers__`. Source: torch/csrc/jit/serialization/python_print.cpp.
"""

import re
import zipfile
from typing import Any

from lit_transfer.weights._stand_ins import StandIn, as_tensor

MAX_CODE_BYTES = 64 * 2**20
_CLASS = re.compile(
    r"^class (\w+)\(Module\):\n  __parameters__ = \[([^\]\n]*)\]\n  __buffers__ = \[([^\]\n]*)\]\n", re.MULTILINE
)
Names = dict[str, frozenset[str]]


def is_script(names: list[str], root: str) -> bool:
    """Whether an archive holds code, below the folder `root`."""
    return any(name.startswith(root + "code/") for name in names)


def state_names(archive: zipfile.ZipFile, root: str) -> Names:
    """Class -> the names of its parameters and buffers; classes without modules' code are left out."""
    found: Names = {}
    left = MAX_CODE_BYTES
    for info in archive.infolist():
        left -= info.file_size if info.filename.startswith(root + "code/") else 0
        if left < 0:
            break
        if info.filename.startswith(root + "code/") and info.filename.endswith(".py"):
            room = info.filename[len(root + "code/") : -len(".py")].replace("/", ".")
            text = archive.read(info).decode("utf-8", "replace")
            for name, parameters, buffers in _CLASS.findall(text):
                found[f"{room}.{name}"] = frozenset(re.findall(r'"([^"]+)"', f"{parameters},{buffers}"))
    return found


def leave_out_plain_tensors(root: Any, names: Names) -> None:
    """Take from each module the tensors that are neither parameters nor buffers, as `state_dict()` does."""
    waiting, seen = [root], {id(root)}
    while waiting:
        module = waiting.pop()
        if not isinstance(module, StandIn):
            continue
        attributes = module.attributes
        if module.name in names:
            for name in [n for n, value in attributes.items() if as_tensor(value) is not None]:
                if name not in names[module.name]:
                    del attributes[name]
        for child in attributes.values():
            if isinstance(child, StandIn) and id(child) not in seen:
                seen.add(id(child))
                waiting.append(child)
