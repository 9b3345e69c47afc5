"""A model without its classifier, under the parameter names that it came with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from typing_extensions import Self

from lit_transfer.backbones._preprocessing import Preprocessing
from lit_transfer.stages import Stage, StageMap, Trace, noted, place_axes, stage_maps, trace_stages

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
        self._pooled: tuple[int, ...] = ()
        self._last: StageMap | None = None
        self.num_features = 0
        _refuse_hidden(model, self.__dict__)
        self.__dict__["_upstream"] = model
        for shared in _SHARED:
            self.__dict__[shared] = model.__dict__[shared]
        self.training = model.training
        self._pooled, self.num_features = _pooling(self, type(model).__name__)

    def forward(self, images: Tensor) -> Tensor:
        """Give (N, num_features); what is still spread over pixels or tokens after the cut is averaged over them.

        After `give_map()` it gives the last feature map instead, (N, num_features, H, W).
        """
        if self._last is not None:
            return self._maps_of(images, {"last": self._last})["last"]
        features = _first_tensor(self._run(images))
        return features.mean(self._pooled) if self._pooled else features

    def forward_stages(self, images: Tensor) -> dict[str, Tensor]:
        """Give the feature map at the end of each stage, in one run.

        It is what the last unit of the stage with weights gives, after its normalisation and activation. What keeps the
        channels last is permuted; tokens are put back in their places and class and register tokens left out.

        Args:
            images: (N, C, H, W), also of another size than that of `preprocessing` where the model takes it.

        Returns:
            (N, channels[stage], H / strides[stage], W / strides[stage]) by name of stage, from `stem` on; the sides
            rounded as the model's borders have it. A stage that `channels` has not is not there.

        Raises:
            ValueError: No stage gives a feature map, or one gives something else than when it was traced.
        """
        maps = self._maps
        if not maps:
            raise ValueError(f"no stage of {self.name} gives a feature map: expected outputs that grow with the image.")
        return self._maps_of(images, maps)

    def give_map(self, on: bool = True) -> None:
        """Have `forward` give the last feature map, for a head that pools by itself, or the features again.

        It is the last of `forward_stages`; what the model does behind it without a module of its own (the ReLU of
        DenseNet) is left out.

        Args:
            on: Whether to give the map.

        Raises:
            ValueError: There is no such map, or weights of the backbone work on what is pooled.
        """
        self._last = self._last_map() if on else None

    def _last_map(self) -> StageMap:
        stage = self.trace.stages[-1]
        place = self._maps.get(stage.name)
        behind = () if place is None else stage.modules[stage.modules.index(place.unit) + 1 :]
        owners = [name for name in behind if any(True for _ in self.get_submodule(name).parameters())]
        if place is not None and place.channels == self.num_features and not owners:
            return place
        why = f"{owners[0]} works on what is pooled" if owners else f"{stage.name}, its last stage, gives vectors"
        raise ValueError(
            f"{self.name} has no last feature map for a head that pools by itself (attention): {why}. Choose another "
            "backbone, such as resnet18, swin_t or vit_b_16, or another head."
        )

    def _maps_of(self, images: Tensor, maps: Mapping[str, StageMap]) -> dict[str, Tensor]:
        with noted(self, {name: place.unit for name, place in maps.items()}, lambda n, out: maps[n].of(out)) as seen:
            self._run(images)
        if missing := [f"{name} ({maps[name].unit})" for name in maps if name not in seen]:
            raise ValueError(f"the run did not call what gives the map of {', '.join(missing)}.")
        height, width = images.shape[-2:]
        return {name: place.arranged(seen[name], height, width) for name, place in maps.items()}

    @property
    def channels(self) -> dict[str, int]:
        """Channels of the feature map of each stage; a stage that gives none (vectors, as in VGG's) is left out."""
        return {name: place.channels for name, place in self._maps.items()}

    @property
    def strides(self) -> dict[str, int]:
        """Pixels of the image on a side for each pixel of the stage's feature map."""
        return {name: place.stride for name, place in self._maps.items()}

    @cached_property
    def _maps(self) -> dict[str, StageMap]:
        """Found by runs without memory when they are first asked for."""
        return stage_maps(self, self.trace.stages, self.preprocessing.crop, len(self.preprocessing.mean))

    def _run(self, images: Tensor) -> Any:
        if self._upstream.training != self.training:  # set without train(), as freezing and tracing do
            self._upstream.training = self.training
        # Called without its hooks where it has none, torch.fx can trace it: it is no child and so has no name.
        hooked = self._upstream._forward_hooks or self._upstream._forward_pre_hooks
        return (self._upstream if hooked else self._upstream.forward)(images)

    def train(self, mode: bool = True) -> Self:
        """Set the flag here and in the wrapped model, whose own `train` may do more."""
        self._upstream.train(mode)
        self.training = mode
        return self

    def extra_repr(self) -> str:
        """Name, weights and width, for `print`."""
        gives = "" if self._last is None else f", gives the map of {self._last.unit}"
        return f"{self.name}, weights={self.weights}, num_features={self.num_features}{gives}"

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


def _pooling(backbone: Backbone, model: str) -> tuple[tuple[int, ...], int]:
    """Return the axes of the output to average over, and the width that remains; nothing is averaged yet."""
    made = backbone.preprocessing
    try:
        shape = trace_stages(backbone, made.crop, in_channels=len(made.mean), classifier=None).feature_shape
    except ValueError as error:
        if backbone.trace.classifier is None:  # otherwise it ran as long as it had one
            raise
        raise ValueError(
            f"{model} does not run without {backbone.trace.classifier}, which was taken for its classifier: "
            f"{error.__cause__ or error}. Its logits may be made by several layers of unequal width. Give a module of "
            "your own whose forward gives the features, or another backbone."
        ) from error
    if not shape:
        raise ValueError(f"{model} gives no features of shape (N, C) for images of shape (N, C, H, W).")
    places = place_axes(shape)  # Swin and its kin keep the channels last
    channels = next(axis for axis in range(len(shape)) if axis not in places)
    return tuple(axis + 1 for axis in places), shape[channels]


def _refuse_hidden(model: nn.Module, own: Mapping[str, Any]) -> None:
    public = {name for name in own if not name.startswith("_")} | {"channels", "strides"}
    members = {*model._modules, *model._parameters, *model._buffers}
    if hidden := sorted(public & members):
        raise ValueError(
            f"{type(model).__name__} has members named {', '.join(hidden)}, which a Backbone uses for itself. "
            "Rename them, or wrap the module in another one."
        )


def _first_tensor(output: Any) -> Tensor:
    """Return the features out of a tuple, a dictionary or a model output; transformers' may have them pooled."""
    while isinstance(output, Mapping | tuple | list):
        if isinstance(output, Mapping) and output.get("pooler_output") is not None:
            output = output["pooler_output"]
            break
        output = next(iter(output.values() if isinstance(output, Mapping) else output))
    features: Tensor = output
    return features
