"""safetensors: the weights under this library's names, and as text what it takes to build the module again."""

import copy
from pathlib import Path

import torch
from torch import Tensor

from lit_transfer.export._job import Answering, Job, Run
from lit_transfer.modules import TransferModule
from lit_transfer.modules._portable import about_as_text
from lit_transfer.weights import load_weights, save_weights


def write(job: Job, path: Path) -> None:
    """Write the state dict; `load_from_checkpoint`, `load_predictor` and `load_weights` read it."""
    save_weights(job.module, path, metadata={**job.about.text(), **about_as_text(job.module)})


def reopen(job: Job, path: Path) -> Run:
    """Build the module again from nothing but the file; one whose parts were given as modules is filled from it."""
    try:
        loaded = type(job.module).load_from_checkpoint(str(path)).eval()
    except (TypeError, ValueError, RuntimeError, ImportError, AttributeError):
        loaded = _filled(job.module, path)
        job.notes.append(
            "its arguments do not tell how to build it (a backbone or head that was given as a module): "
            "load_weights(module, FILE) fills one that is there"
        )
    answering = Answering(loaded)

    def run(pixels: Tensor) -> Tensor:
        with torch.no_grad():
            answers: Tensor = answering(pixels)
        return answers

    return run


def _filled(module: TransferModule, path: Path) -> TransferModule:
    """Fill a copy that has no value of its own left."""
    blank = copy.deepcopy(module)
    with torch.no_grad():
        for tensor in blank.state_dict().values():
            tensor.zero_()
    load_weights(blank, path, head=())
    return blank


def runtime() -> str:
    """Name the runtime."""
    return "a module built again from the file"
