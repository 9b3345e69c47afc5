"""From a checkpoint or a module to a file that is written, run again, compared, and only then there."""

import difflib
import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from lit_transfer.export import _onnx, _safetensors, _torch_export, _torchvision
from lit_transfer.export._about import about, answers_in_words, inputs_in_words, logits_in_words, pixels_in_words
from lit_transfer.export._compare import compare
from lit_transfer.export._file import check_target, whole_or_absent
from lit_transfer.export._images import find
from lit_transfer.export._job import Job, Run, private_copy
from lit_transfer.export._report import ExportError, ExportReport
from lit_transfer.modules import TransferModule, read_saved
from lit_transfer.weights import WeightsError

To = Literal["onnx", "torch_export", "safetensors", "torchvision"]
TO: tuple[To, ...] = get_args(To)


class _Format(NamedTuple):
    suffixes: tuple[str, ...]  # the first one is the default
    needs: tuple[str, ...]  # packages of the extra
    takes: Callable[[TransferModule], str]
    gives: Callable[[TransferModule], str]
    check: Callable[[TransferModule], None]
    write: Callable[[Job, Path], None]
    reopen: Callable[[Job, Path], Run]
    runtime: Callable[[], str]


def _any(module: TransferModule) -> None:
    """Take every module."""


_FORMATS: dict[str, _Format] = {
    "onnx": _Format(
        (".onnx",),
        ("onnx", "onnxscript", "onnxruntime"),
        pixels_in_words,
        answers_in_words,
        _any,
        _onnx.write,
        _onnx.reopen,
        _onnx.runtime,
    ),
    "torch_export": _Format(
        (".pt2",),
        (),
        pixels_in_words,
        answers_in_words,
        _any,
        _torch_export.write,
        _torch_export.reopen,
        _torch_export.runtime,
    ),
    "safetensors": _Format(
        (".safetensors",),
        (),
        inputs_in_words,
        answers_in_words,
        _any,
        _safetensors.write,
        _safetensors.reopen,
        _safetensors.runtime,
    ),
    "torchvision": _Format(
        (".pth", ".pt"),
        (),
        inputs_in_words,
        logits_in_words,
        _torchvision.check,
        _torchvision.write,
        _torchvision.reopen,
        _torchvision.runtime,
    ),
}


def export(
    checkpoint: str | os.PathLike[str] | TransferModule,
    path: str | os.PathLike[str] | None = None,
    *,
    to: To = "onnx",
    images: str | Path | Sequence[str | Path] | None = None,
    force: bool = False,
) -> ExportReport:
    """Write a trained module as a file that others run, in float32, and check it before it is there.

    `"onnx"` and `"torch_export"` are whole graphs, which need no code of this library. They take `images`, uint8
    (N, C, crop, crop) with values from 0 to 255 as an image file has them, resized and cropped; any number N.
    Scaling and normalisation are inside, so that they cannot be forgotten or done twice: floats are refused by their
    dtype. They give `answers`, float32 (N, outputs): what `predict_step` gives, which is probabilities for an
    `ImageClassifier` and a `MultiLabelClassifier`, and numbers in their own units for an `ImageRegressor`.

    `"safetensors"` is the weights under this library's names, with what it takes to build the module again:
    `load_predictor`, `load_from_checkpoint` and `load_weights` read it. `"torchvision"` is a state dict under
    torchvision's names, with the head where its model has the classifier; a regressor's units are in that layer.

    All of them keep, as text: `task`, the names of classes, labels or targets, `thresholds`, `preprocessing` (sizes
    in pixels, interpolation, mean and std), `input` and `output`. In ONNX these are `custom_metadata_map`, in
    torch.export the extra file `lit_transfer.json`, in safetensors its metadata.

    The file is run again in its own runtime on real images, in batches of one and of several, beside the module in
    float32. Only if no probability differs by more than 1e-4 (no number by more than 1e-4 of its standard deviation,
    beside the rounding of float32) is it given its name; else there is no file.

    Args:
        checkpoint: A checkpoint of a `TransferModule`, or a module, which stays as it is.
        path: File to write, or a folder for it; beside the checkpoint and named like it if not given.
        to: The format.
        images: Folder or files on which to compare, all of them; if not given, 16 images of the run's data where
            `config.yaml` beside the checkpoint tells them, else the two photos that scikit-learn brings.
        force: Replace a file that is there.

    Raises:
        ExportError: If the module does not fit the format, or the file answers otherwise.
        WeightsError: If the checkpoint is damaged or of another library.
        ImportError: If a package of the extra `export` is missing.
        OSError: If a file is missing or in the way, or cannot be written.
        ValueError: If `to`, the suffix or an image is wrong.
    """
    chosen = _format(to)
    source = None if isinstance(checkpoint, TransferModule) else Path(checkpoint)
    target = _target(path, source, to)
    check_target(target, source, force=force)
    module = private_copy(checkpoint if isinstance(checkpoint, TransferModule) else _load(Path(checkpoint)))
    if not hasattr(module, "head"):
        raise ExportError("the module has no head yet, for no data has told how many outputs it has: train it first.")
    chosen.check(module)
    takes, gives = chosen.takes(module), chosen.gives(module)
    told = about(module, takes=takes, gives=gives, source=source.name if source else "a module")
    job = Job(module, told, find(images, source), _notes(checkpoint))
    with whole_or_absent(target) as temporary:
        chosen.write(job, temporary)
        comparison = compare(job, chosen.reopen(job, temporary), target, to)
        size = temporary.stat().st_size
    notes = tuple(job.notes)
    return ExportReport(target, to, size, chosen.runtime(), takes, gives, job.images.source, comparison, notes)


def _format(to: str) -> _Format:
    if to not in _FORMATS:
        near = difflib.get_close_matches(to, TO, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"to={to!r} is unknown; known are {', '.join(TO)}.{hint}")
    missing = [name for name in _FORMATS[to].needs if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"to={to!r} needs {', '.join(missing)}: pip install 'lit-transfer[export]'.")
    return _FORMATS[to]


def _target(path: str | os.PathLike[str] | None, source: Path | None, to: str) -> Path:
    suffixes = _FORMATS[to].suffixes
    if path is None and source is None:
        raise ValueError(f"a module has no file name: give a path, such as model{suffixes[0]}.")
    target = Path(path) if path is not None else Path(source or "").with_suffix(suffixes[0])
    if target.is_dir():
        target = target / f"{source.stem if source else 'model'}{suffixes[0]}"
    if target.suffix not in suffixes:
        raise ValueError(f"to={to!r} writes {' or '.join(suffixes)}, got {target.name!r}.")
    return target


def _load(checkpoint: Path) -> TransferModule:
    if not checkpoint.is_file():
        raise FileNotFoundError(f"No checkpoint at {str(checkpoint)!r}.")
    if read_saved(checkpoint) is None:
        raise WeightsError(
            f"{checkpoint} is no checkpoint of a TransferModule, so that nothing in it tells which module its weights "
            "are for. Build that module, fill it with load_weights(module, PATH), and give export the module."
        )
    return TransferModule.load_from_checkpoint(str(checkpoint), map_location="cpu")


def _notes(checkpoint: object) -> list[str]:
    """Tell of what is written in another dtype than it is in."""
    if not isinstance(checkpoint, TransferModule):
        return []
    others = {parameter.dtype for parameter in checkpoint.parameters() if parameter.is_floating_point()}
    names = sorted(str(dtype).removeprefix("torch.") for dtype in others if str(dtype) != "torch.float32")
    return [f"weights of {', '.join(names)} are written, and compared, as float32"] if names else []
