"""torch.export: a graph that torch loads without any of the code it came from."""

import io
import json
from pathlib import Path

import torch
from torch import Tensor

from lit_transfer.export._job import Job, Run
from lit_transfer.export._quiet import quietly

ABOUT = "lit_transfer.json"  # the name of the extra file inside


def write(job: Job, path: Path) -> None:
    """Write the graph from pixels to answers, and beside it in the file a JSON object with what is kept."""
    program = job.traced()
    with quietly():
        torch.export.save(program, buffer := io.BytesIO(), extra_files={ABOUT: json.dumps(job.about.values)})
    path.write_bytes(buffer.getbuffer())  # a full disk is an OSError here, and nothing so clear in torch


def reopen(job: Job, path: Path) -> Run:
    """Load the graph again and run it."""
    with quietly():
        graph = torch.export.load(path).module()

    def run(pixels: Tensor) -> Tensor:
        with torch.no_grad():
            answers: Tensor = graph(pixels)
        return answers

    return run


def runtime() -> str:
    """Name the runtime with its version."""
    return f"torch.export.load of torch {torch.__version__}"
