"""A model without its classifier, under the parameter names that it came with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from typing_extensions import Self

from lit_transfer.backbones._preprocessing import Preprocessing
from lit_transfer.stages import Stage, Trace, trace_stages

if TYPE_CHECKING:
    from lit_transfer.weights import LoadReport

__all__ = ["Backbone", "cut_classifier"]

# What an nn.Module keeps its members and the hooks on its state dict in.
_SHARED = (
    "_modules",
    "_parameters",
    "_buffers",
    "_non_persistent_buffers_set",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


class Backbone(nn.Module):
    """Gives features of shape (N, num_features) for images of shape (N, C, H, W).

    It has the children, parameters and buffers of the model that it wraps as its own, so that `state_dict()`,
    `named_parameters()` and `get_submodule()` know them under exactly the names that they have upstream. It does so by
    sharing the dictionaries in which an `nn.Module` keeps them. Registering the model as a child would put a prefix
    before each name, which no hook takes away again from `named_parameters()`; a subclass of the model's class would
    collide with its attributes (timm's models have `num_features` and `stages` of their own).

    For the same reason the stages are `trace.stages` and not an attribute here: they would hide a child of that name.

    Attributes:
        trace: Its stages, from `stem` on; `classifier` is the name where the classifier was.
        num_features: Width of the features.
        feature_shape: Shape of what the classifier received, without the batch dimension.
        preprocessing: How an image becomes its input.
        name: What `create_backbone` was called with, or the class of a module.
        weights: Which pretrained weights it started from: a name, a path or URL, or None.
        load_report: What was loaded from a file; None where the source loads its own weights.
    """

    _upstream: nn.Module

    def __init__(
        self,
        model: nn.Module,
        trace: Trace,
        *,
        preprocessing: Preprocessing,
        name: str,
        weights: str | None = None,
        load_report: LoadReport | None = None,
    ) -> None:
        """Wrap a model whose classifier is cut already.

        Args:
            model: From `cut_classifier`; its children are shared, not copied.
            trace: Of the model with its classifier, on images as `preprocessing` makes them.
            preprocessing: How an image becomes its input.
            name: What the backbone is called.
            weights: Where its weights are from.
            load_report: What was loaded.

        Raises:
            ValueError: A child or parameter of the model has the name of an attribute of this class, or the model does
                not give features for images of that size.
        """
        super().__init__()
        self.trace = replace(trace, stages=_body(model, trace))
        self.feature_shape = trace.feature_shape
        self.preprocessing = preprocessing
        self.name, self.weights, self.load_report = name, weights, load_report
        self._pooled, self.num_features = _pooling(model, preprocessing)
        _refuse_hidden(model, self.__dict__)
        self.__dict__["_upstream"] = model
        for shared in _SHARED:
            self.__dict__[shared] = model.__dict__[shared]
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        """Give (N, num_features); what is still spread over pixels or tokens after the cut is averaged over them."""
        if self._upstream.training != self.training:  # set without train(), as freezing and tracing do
            self._upstream.training = self.training
        # Called without its hooks where it has none, torch.fx can trace it: it is no child and so has no name.
        hooked = self._upstream._forward_hooks or self._upstream._forward_pre_hooks
        features = _first_tensor((self._upstream if hooked else self._upstream.forward)(images))
        return features.mean(self._pooled) if self._pooled else features

    def train(self, mode: bool = True) -> Self:
        """Set the flag here and in the wrapped model, whose own `train` may do more."""
        self._upstream.train(mode)
        self.training = mode
        return self

    def extra_repr(self) -> str:
        """Name, weights and width, for `print`."""
        return f"{self.name}, weights={self.weights}, num_features={self.num_features}"

    # A model may read its own old formats: MNASNet tells them by `_version` and rebuilds its stem for the first.

    @property
    def _version(self) -> int:  # type: ignore[override]  # a class attribute there; here it is that of the instance
        return self._upstream._version

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._upstream._load_from_state_dict(*args, **kwargs)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._upstream._save_to_state_dict(*args, **kwargs)


def cut_classifier(model: nn.Module, trace: Trace) -> None:
    """Put an identity in the place of each module that makes logits."""
    heads = trace.stages[-1].modules if trace.classifier is not None else ()
    for name in heads:
        parent, _, child = name.rpartition(".")
        model.get_submodule(parent)._modules[child] = nn.Identity()


def _body(model: nn.Module, trace: Trace) -> tuple[Stage, ...]:
    """Leave the head out; what of its parameters is no part of a classifier (a temperature) goes to the last stage."""
    *body, last = trace.stages
    if last.name != "head":
        return trace.stages
    kept = {name for name, _ in model.named_parameters()}
    left = tuple(name for name in last.parameters if name in kept)
    if left and body:
        body[-1] = replace(body[-1], parameters=body[-1].parameters + left)
    return tuple(body)


def _pooling(model: nn.Module, preprocessing: Preprocessing) -> tuple[tuple[int, ...], int]:
    """Return the axes of the model's output to average over, and the width that remains."""
    traced = trace_stages(model, preprocessing.crop, in_channels=len(preprocessing.mean), classifier=None)
    shape = traced.feature_shape
    if not shape:
        raise ValueError(f"{type(model).__name__} gives no features of shape (N, C) for images of shape (N, C, H, W).")
    # Swin and its kin keep the channels last: the two equal sides are height and width, for the images are square.
    channels = len(shape) - 1 if len(shape) == 2 or (len(shape) == 3 and shape[0] == shape[1] != shape[2]) else 0
    return tuple(axis + 1 for axis in range(len(shape)) if axis != channels), shape[channels]


def _refuse_hidden(model: nn.Module, own: Mapping[str, Any]) -> None:
    public = {name for name in own if not name.startswith("_")}
    members = {*model._modules, *model._parameters, *model._buffers}
    if hidden := sorted(public & members):
        raise ValueError(
            f"{type(model).__name__} has members named {', '.join(hidden)}, which a Backbone uses for itself. "
            "Rename them, or wrap the module in another one."
        )


def _first_tensor(output: Any) -> Tensor:
    """Return the features out of a tuple, a dictionary or a model output."""
    while isinstance(output, Mapping | tuple | list):
        output = next(iter(output.values() if isinstance(output, Mapping) else output))
    features: Tensor = output
    return features
