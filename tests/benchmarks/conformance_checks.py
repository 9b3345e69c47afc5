"""What the conformance table asks of an architecture, one function for each column."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from conformance_models import backbone_of
from torch import Tensor, nn

from lit_transfer import create_backbone, freeze, load_weights, param_groups, save_weights, unfreeze
from lit_transfer._selection import is_norm
from lit_transfer.backbones import Backbone
from lit_transfer.export._attention import SpelledOut
from lit_transfer.modules import ImageClassifier

__all__ = ["CHECKS", "ON_META", "Subject", "Unmet"]

MANY = 15e6  # parameters, from which on freezing runs backward at a few boundaries only
LARGE = 700e6  # parameters, from which on there is no memory for gradients and copies
SIZES = (64, 96, 128, 224)
NEAR = 1e-4


class Unmet(Exception):  # noqa: N818  # it is an answer
    """What a column asks is not so; its text is the reason."""


@dataclass
class Subject:
    """One architecture with random weights and a head, and images for it."""

    name: str
    folder: Path
    size: int = 0
    own_size: int = 0
    count: int = 0
    on_meta: bool = False

    def create(self) -> str:
        """Find the smallest size at which it has the stages that it has at its own size, and make it with a head."""
        own = _bare(self.name)
        self.count = sum(parameter.numel() for parameter in own.parameters())
        self.on_meta = self.count > LARGE
        self.own_size = own.preprocessing.crop
        for size in (*(size for size in SIZES if size < self.own_size), self.own_size):
            self.size = size
            try:
                self.backbone = _bare(self.name, input_size=self.size) if self.on_meta else self._with_head()
            except ValueError:
                if self.size == self.own_size:
                    raise
                continue
            if _parts(self.backbone) == _parts(own):
                break
        return "ok"

    def _with_head(self) -> Backbone:
        torch.manual_seed(0)
        size = {} if self.size == self.own_size else {"input_size": self.size}
        self.module = ImageClassifier(
            backbone_of(self.name), weights=None, num_classes=3, channels_last=False, **size
        ).eval()
        return self.module.backbone

    def images(self, channels: int = 3) -> Tensor:
        """Two of them."""
        return torch.rand(2, channels, self.size, self.size, generator=torch.Generator().manual_seed(0))

    @cached_property
    def file(self) -> Path:
        """The weights of the backbone."""
        return save_weights(self.backbone, self.folder / "weights.safetensors")


def _bare(name: str, **arguments: Any) -> Backbone:
    try:
        with torch.device("meta"):
            return create_backbone(backbone_of(name), weights=None, **arguments)
    except ValueError:  # some of timm's are not built without memory
        return create_backbone(backbone_of(name), weights=None, **arguments)


def _parts(backbone: Backbone) -> list[tuple[str, ...]]:
    return [stage.parameters for stage in backbone.trace.stages]


def trace(subject: Subject) -> str:
    """Its features are known, and given."""
    backbone = subject.backbone
    if backbone.trace.classifier is None and not subject.name.startswith("hf:"):
        return f"{len(_parts(backbone))}, no classifier"
    if not subject.on_meta:
        with torch.no_grad():
            features = backbone(subject.images())
        if features.shape != (2, backbone.num_features):
            raise Unmet(f"features {tuple(features.shape)}, told {backbone.num_features}")
        if not features.isfinite().all():
            raise Unmet("features are not finite")
    return str(len(_parts(backbone)))


def stages(subject: Subject) -> str:
    """Every parameter is in exactly one stage, and no stage is empty."""
    parts = _parts(subject.backbone)
    held = sorted(name for part in parts for name in part)
    if held != sorted(name for name, _ in subject.backbone.named_parameters()):
        raise Unmet("not each parameter once")
    if not all(parts):
        raise Unmet("an empty stage")
    if len(parts) < 3:
        raise Unmet(f"only {len(parts)} stages")
    return "ok"


def freezing(subject: Subject) -> str:
    """At each boundary: below it no gradient, statistics that stay, no dropout; above it a gradient for each.

    Of a model with many parameters the backward passes are those of the first, the middle and the last boundary.
    """
    backbone, names = subject.backbone, [stage.name for stage in subject.backbone.trace.stages]
    few = {0, 1, len(names) // 2, len(names)}
    try:
        for until in range(len(names) + 1):
            freeze(backbone, names[:until])
            runs = not subject.on_meta and (until in few or subject.count < MANY)
            _check_boundary(subject, until, names, runs)
            unfreeze(backbone)
            backbone.zero_grad(set_to_none=True)
    finally:
        backbone.eval()
    return "ok"


def _check_boundary(subject: Subject, until: int, names: list[str], runs: bool) -> None:
    backbone = subject.backbone
    below = {name for stage in backbone.trace.stages[:until] for name in stage.parameters}
    named = dict(backbone.named_parameters())
    if below - {name for name, p in named.items() if not p.requires_grad}:
        raise Unmet(f"{names[until - 1]} is not frozen")
    if not runs:
        return
    _check_run(subject, below, wholly=until == len(names))
    if until < len(names):
        _check_gradients(backbone, set(named) - below - set(backbone.trace.unused))


def _check_run(subject: Subject, below: set[str], *, wholly: bool) -> None:
    backbone = subject.backbone
    named = dict(backbone.named_parameters())
    statistics = {name: value.clone() for name, value in backbone.named_buffers() if _belongs(name, below)}
    expected = backbone.eval()(subject.images()) if wholly else None
    features = backbone.train()(subject.images())
    if expected is not None and not torch.equal(features, expected):
        raise Unmet("wholly frozen, train() changes the features")
    if not wholly:
        features.sum().backward()
    for name, value in backbone.named_buffers():
        if name in statistics and not torch.equal(value, statistics[name]):
            raise Unmet(f"{name} changed though frozen")
    for path, module in backbone.named_modules():
        if is_norm(module) and module.training and _belongs(f"{path}.weight", below):
            raise Unmet(f"{path} in train mode though frozen")
    if graded := [name for name in below if named[name].grad is not None]:
        raise Unmet(f"{len(graded)} frozen have a gradient")


def _check_gradients(backbone: Backbone, above: set[str]) -> None:
    lacking = [name for name, p in backbone.named_parameters() if name in above and p.requires_grad and p.grad is None]
    if lacking:
        raise Unmet(f"no gradient for {len(lacking)}: {lacking[0]}")


def _belongs(name: str, parameters: set[str]) -> bool:
    """Whether a buffer lies beside parameters that are all among these."""
    return f"{name.rpartition('.')[0]}.weight" in parameters


def maps(subject: Subject) -> str:
    """The maps have the channels and strides that are told before it is run."""
    backbone = subject.backbone
    channels, strides = backbone.channels, backbone.strides
    without = [stage.name for stage in backbone.trace.stages if stage.name not in channels]
    if not channels:
        raise Unmet("no stage gives a map")
    if not subject.on_meta:
        with torch.no_grad():
            given = backbone.forward_stages(subject.images())
        for name, told in channels.items():
            shape, side = tuple(given[name].shape), subject.size / strides[name]
            if shape[1] != told or shape[2] != shape[3] or not -1 < side - shape[2] <= max(1, side / 3):
                raise Unmet(f"{name}: {shape[1:]}, told {told} at stride {strides[name]}")
    return f"ok, none of {', '.join(without)}" if without else "ok"


def decay(subject: Subject) -> str:
    """Each parameter is in one group, with a rate that falls by stage."""
    backbone = subject.backbone
    groups = param_groups(backbone, 1e-3, layer_decay=0.8)
    held = [id(parameter) for group in groups for _, parameter in group["params"]]
    if sorted(held) != sorted(id(parameter) for parameter in backbone.parameters()):
        raise Unmet("not each parameter once")
    rates = {group["stage"]: group["lr"] for group in groups}
    depth = len(backbone.trace.stages)
    if [round(r / 1e-3, 9) for r in rates.values()] != [round(0.8 ** (depth - i), 9) for i in range(depth)]:
        raise Unmet("rates do not fall by stage")
    return "ok"


def head(subject: Subject) -> str:
    """A new head gives other answers, and the backbone stays."""
    before = {name: value.clone() for name, value in subject.backbone.state_dict().items()}
    subject.module.reset_head(num_classes=5)
    with torch.no_grad():
        answer = subject.module.eval()(subject.images())
    if answer.shape != (2, 5):
        raise Unmet(f"answers {tuple(answer.shape)}")
    if not all(torch.equal(value, before[name]) for name, value in subject.module.backbone.state_dict().items()):
        raise Unmet("the backbone changed")
    return "ok"


def channels(subject: Subject) -> str:
    """Weights for three channels go into a backbone for four."""
    if subject.on_meta:
        _bare(subject.name, in_channels=4)
        return "ok"
    source = backbone_of(subject.name)
    four = create_backbone(source, weights=str(subject.file), in_channels=4, input_size=subject.size).eval()
    with torch.no_grad():
        features = four(subject.images(4))
    if features.shape != (2, subject.backbone.num_features):
        raise Unmet(f"features {tuple(features.shape)}")
    own = {name: value for name, value in subject.backbone.state_dict().items() if value.is_floating_point()}
    state = four.state_dict()
    if changed := [name for name, value in own.items() if not _kept(state[name], value)]:
        raise Unmet(f"{changed[0]} is not what the file has")
    return "ok"


def _kept(now: Tensor, before: Tensor) -> bool:
    return now.shape != before.shape or torch.equal(now, before)


def saving(subject: Subject) -> str:
    """Saved and loaded into one without values, it gives the same bit for bit."""
    fresh = copy.deepcopy(subject.backbone)
    with torch.no_grad():
        for tensor in fresh.state_dict().values():  # a buffer that is not saved has its value from __init__
            tensor.zero_()
    report = load_weights(fresh, subject.file)
    if report.coverage != 1:
        raise Unmet(f"coverage {report.coverage:.2f}")
    state = subject.backbone.state_dict()
    if different := [name for name, value in fresh.state_dict().items() if not torch.equal(value, state[name])]:
        raise Unmet(f"{different[0]} differs")
    with torch.no_grad():
        if not torch.equal(fresh(subject.images()), subject.backbone.eval()(subject.images())):
            raise Unmet("features differ")
    return "ok"


def export_onnx(module: nn.Module, images: Tensor, path: Path) -> None:
    """Write a module as ONNX, as `lit_transfer.export` does."""
    with SpelledOut():
        program = torch.export.export(module, (images,))
    torch.onnx.export(program, (), path, dynamo=True, verbose=False)


def onnx(subject: Subject) -> str:
    """Exported to ONNX, onnxruntime gives the same to 1e-4 of the largest value."""
    import onnxruntime

    backbone, images = subject.backbone.eval(), subject.images()
    with torch.no_grad():
        expected = backbone(images)
    export_onnx(backbone, images, path := subject.folder / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])
    difference = float((given - expected).abs().max() / expected.abs().max().clamp(min=1))
    if difference > NEAR:
        raise Unmet(f"differs by {difference:.1g}")
    return "ok"


CHECKS: dict[str, Callable[[Subject], str]] = {
    "create": Subject.create,
    "trace": trace,
    "stages": stages,
    "freeze": freezing,
    "maps": maps,
    "decay": decay,
    "head": head,
    "4 channels": channels,
    "save, load": saving,
    "ONNX": onnx,
}
# What can be asked of a model without memory.
ON_META = ("create", "trace", "stages", "freeze", "maps", "decay", "4 channels")
