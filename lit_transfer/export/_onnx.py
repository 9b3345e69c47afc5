"""ONNX, run by onnxruntime."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_transfer.export._attention import SpelledOut
from lit_transfer.export._job import ANY_NUMBER, Job, Run
from lit_transfer.export._quiet import quietly
from lit_transfer.export._report import ExportError

_MOST_BYTES = 2**31 - 2**20  # of a protobuf message, less the graph


def write(job: Job, path: Path) -> None:
    """Write the graph from pixels to answers; what is kept beside it are the model's metadata.

    Raises:
        ExportError: If the module cannot be traced or translated, or is larger than such a file may be.
    """
    size = sum(tensor.nbytes for tensor in (*job.module.parameters(), *job.module.buffers()))
    if size > _MOST_BYTES:
        raise ExportError(
            f"an ONNX file holds at most 2 GB, and the weights have {size / 1e9:.1f} GB: to='torch_export'."
        )
    with SpelledOut():
        program = job.traced()
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["answers"], "dynamic_shapes": ANY_NUMBER}
    try:
        with quietly():
            made = torch.onnx.export(program, dynamo=True, verbose=False, **names)
    except Exception as error:  # the exporter wraps whatever a layer's translation raises
        name = job.module.backbone.name
        raise ExportError(
            f"torch.onnx cannot translate {name}: {_reason(error)}. to='torch_export' needs no translation."
        ) from error
    if made is None:
        raise ExportError("torch.onnx gave no program.")
    made.model.metadata_props.update(job.about.text())
    with quietly():
        made.save(path, external_data=False)


def reopen(job: Job, path: Path) -> Run:
    """Run the file in onnxruntime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(pixels: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": pixels.numpy()})[0])

    return run


def runtime() -> str:
    """Name the runtime with its version."""
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}"


def _reason(error: BaseException) -> str:
    """The innermost cause says which layer it was."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
