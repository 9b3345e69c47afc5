"""torchvision's own names: a state dict that torchvision's model loads, its classifier included."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from lit_transfer.backbones import _torchvision
from lit_transfer.export._job import Job, Run
from lit_transfer.export._report import ExportError
from lit_transfer.modules import ImageClassifier, ImageRegressor, TransferModule
from lit_transfer.weights import save_weights

_OTHERWISE = "to='onnx', 'torch_export' and 'safetensors' take it"
_LEAST_SHIFT = 64.0


def check(module: TransferModule) -> None:
    """Refuse what torchvision has no model for.

    Raises:
        ExportError: If the backbone is not torchvision's, or the head is not one linear layer.
    """
    name, channels = module.backbone.name, len(module.preprocessing.mean)
    if name not in _torchvision.list_names() or module.backbone.trace.classifier is None:
        raise ExportError(f"the backbone {name} is not one of torchvision's: {_OTHERWISE}.")
    if channels != 3:
        raise ExportError(f"torchvision's {name} takes 3 channels, and this one {channels}: {_OTHERWISE}.")
    if _linear(module) is None:
        raise ExportError(f"torchvision's {name} ends with one linear layer, and this head is another: {_OTHERWISE}.")


def write(job: Job, path: Path) -> None:
    """Write a state dict under torchvision's names, and note how its model is built.

    Raises:
        ExportError: If torchvision's model ends with something that this head's numbers would not survive.
    """
    module, options = job.module, _options(job.module)
    classifier = str(module.backbone.trace.classifier)
    weight, bias = _layer(module)
    model = _build(module)
    place = model.get_submodule(classifier)
    if isinstance(place, nn.Conv2d):  # SqueezeNet's
        weight = weight[:, :, None, None]
    state = module.backbone.state_dict()
    state |= {f"{classifier}.weight": weight, f"{classifier}.bias": bias}
    model.load_state_dict(state)
    if isinstance(place, nn.Conv2d):
        state[f"{classifier}.bias"] = bias + _shift(job, model, place)
    save_weights(state, path, metadata=job.about.text())
    call = ", ".join(f"{name}={value}" for name, value in options.items())
    job.notes.append(f"loads into torchvision.models.{module.backbone.name}({call})")


def reopen(job: Job, path: Path) -> Run:
    """Load the file into torchvision's model, and do by hand what is left to its user."""
    model = _build(job.module)
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=True)
    made = job.module.preprocessing

    def run(pixels: Tensor) -> Tensor:
        inputs = torchvision.transforms.functional.normalize(pixels.float() / 255, list(made.mean), list(made.std))
        with torch.no_grad():
            logits: Tensor = model(inputs)
        if job.about.task == "class":
            return logits.softmax(dim=1)
        return logits.sigmoid() if job.about.task == "multilabel" else logits

    return run


def runtime() -> str:
    """Name the runtime with its version."""
    return f"torchvision {torchvision.__version__}, its own model"


def _options(module: TransferModule) -> Mapping[str, Any]:
    made = module.preprocessing
    return _torchvision.model_options(module.backbone.name, len(made.mean), made.crop, module.num_outputs)


def _build(module: TransferModule) -> nn.Module:
    """Build what the file's user builds, in eval mode."""
    model: nn.Module = torchvision.models.get_model(module.backbone.name, weights=None, **_options(module))
    return model.eval()


def _linear(module: TransferModule) -> nn.Linear | None:
    """The head, if it is one linear layer beside what does nothing in eval mode."""
    layers = [layer for layer in module.head.modules() if not isinstance(layer, nn.Sequential)]
    working = [layer for layer in layers if not isinstance(layer, nn.Dropout | nn.Identity)]
    return working[0] if len(working) == 1 and type(working[0]) is nn.Linear else None


def _layer(module: TransferModule) -> tuple[Tensor, Tensor]:
    """Weight and bias of the last layer; a regressor's units go into them, and a classifier's temperature."""
    linear = _linear(module)
    assert linear is not None  # checked before
    weight = linear.weight
    bias = torch.zeros(len(weight)) if linear.bias is None else linear.bias
    if isinstance(module, ImageRegressor):
        return weight * module.target_std[:, None], bias * module.target_std + module.target_mean
    if isinstance(module, ImageClassifier):
        return weight / module.temperature, bias / module.temperature
    return weight, bias


def _shift(job: Job, model: nn.Module, last: nn.Conv2d) -> float:
    """How much is added to all logits, so that the ReLU that torchvision's SqueezeNet has behind them cuts nothing.

    Without it a logit below zero would be lost; softmax does not see what is added to all. It is four times what the
    lowest logit of any pixel needs on the images at hand.
    """
    if job.about.task != "class":
        name = job.module.backbone.name
        raise ExportError(f"torchvision's {name} ends with a ReLU, which cuts answers below zero: {_OTHERWISE}.")
    lowest = [0.0]
    handle = last.register_forward_hook(lambda _, __, output: lowest.append(float(output.min())))
    with torch.no_grad():
        for _, inputs in job.batches():
            model(inputs)
    handle.remove()
    shift = max(_LEAST_SHIFT, 2.0 ** math.ceil(math.log2(max(-4 * min(lowest), 1))))
    job.notes.append(
        f"{shift:.0f} is added to every logit, for torchvision's model has a ReLU behind them; softmax does not see it "
        f"(the lowest was {min(lowest):.1f})"
    )
    return shift
