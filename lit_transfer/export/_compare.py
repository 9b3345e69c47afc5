"""Whether a file answers as its module does."""

from pathlib import Path

import torch
from torch import Tensor

from lit_transfer.export._job import Job, Run
from lit_transfer.export._report import BOUND, Comparison, ExportError
from lit_transfer.modules import ImageClassifier, ImageRegressor, MultiLabelClassifier, TransferModule
from lit_transfer.predictor import Predictor

# Of the answer itself: numbers far from zero have fewer digits behind the point in float32 than the bound asks for.
_ROUNDING = 1e-6


def compare(job: Job, run: Run, path: Path, to: str) -> Comparison:
    """Run a file on the job's images beside the module, in batches of one and of several.

    Raises:
        ExportError: If an answer differs by more than the bound.
    """
    module = Predictor(job.module)
    images, largest, same = 0, 0.0, 0
    for pixels, inputs in job.batches():
        expected, got = module.outputs(inputs), run(pixels)
        if got.shape != expected.shape:
            raise _differs(path, to, f"has the shape {tuple(got.shape)}, not {tuple(expected.shape)}")
        scale = _scale(job.module)
        apart = (got.float() - expected).abs()
        # Written so that what is no number fails.
        if not bool((apart <= BOUND * scale + _ROUNDING * expected.abs()).all()):
            raise _differs(path, to, f"differs by {float((apart / scale).max()):.2g}, and {BOUND:.0e} is allowed")
        images, largest = images + len(pixels), max(largest, float((apart / scale).max()))
        same += int((_decision(job.module, got) == _decision(job.module, expected)).all(dim=1).sum())
    decides = isinstance(job.module, ImageClassifier | MultiLabelClassifier)
    return Comparison(images, largest, same if decides else None)


def _differs(path: Path, to: str, how: str) -> ExportError:
    return ExportError(
        f"{path.name} was written as {to} and run again, and an answer {how}: it was removed. Another format may do "
        "better; the layer that differs is a fault of the exporter, and worth a report."
    )


def _scale(module: TransferModule) -> Tensor:
    """The unit in which a difference counts: a target's standard deviation, or 1."""
    return module.target_std if isinstance(module, ImageRegressor) else torch.ones(())


def _decision(module: TransferModule, answers: Tensor) -> Tensor:
    """What a user takes from the answers (N, outputs): the class, or the labels."""
    if isinstance(module, MultiLabelClassifier):
        return answers >= module.thresholds
    return answers.flatten(1).argmax(1, keepdim=True)
