"""Heads: what turns a backbone's features into answers.

A head takes the features (N, num_features); one whose class says `takes_map = True` takes the backbone's last feature
map (N, num_features, H, W) before it is averaged.
"""

import difflib
import math
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HeadName = Literal["linear", "mlp", "cosine", "attention"]
# Where the learned scale of cosines starts (Gidaris and Komodakis 2018, see `CosineLinear`).
_SCALE = 10.0
# A shorter feature counts by its length too: the gradient at zeros, 1 / _SHORT, stays finite in float16.
_SHORT = 1e-3


def linear_head(num_features: int, num_outputs: int, dropout: float = 0.0) -> nn.Module:
    """One linear layer that starts at zero, after dropout where it is asked for.

    Args:
        num_features: Width of the features, as in (N, num_features).
        num_outputs: Width of the answer, as in (N, num_outputs).
        dropout: Probability with which a feature is dropped in training.
    """
    linear = _zero_linear(num_features, num_outputs)
    return nn.Sequential(nn.Dropout(dropout), linear) if dropout else linear


def mlp_head(num_features: int, num_outputs: int, dropout: float = 0.0) -> nn.Module:
    """Two linear layers of the features' own width, with GELU and dropout between them.

    Args:
        num_features: Width of the features, as in (N, num_features).
        num_outputs: Width of the answer, as in (N, num_outputs).
        dropout: Probability with which a feature is dropped in training.
    """
    return nn.Sequential(
        nn.Linear(num_features, num_features),
        nn.GELU(),
        nn.Dropout(dropout),
        _zero_linear(num_features, num_outputs),
    )


class CosineLinear(nn.Linear):
    """Scores features by their angle to a weight of each output: scale * cos(feature, weight) + bias.

    Features and weights count by their direction alone, which helps with few examples or with classes of very
    different sizes, whose weights would grow to different norms (Gidaris and Komodakis 2018, "Dynamic Few-Shot Visual
    Learning without Forgetting", arXiv:1804.09458, the section on the cosine-similarity based recognition model, with
    its learned scale, which starts at 10). The bias is not theirs: it starts at zero, or at the prior.

    The weights are random, as torch makes them: zeros have no direction.

    Attributes:
        scale: Learned factor of all cosines, ().
    """

    def __init__(self, num_features: int, num_outputs: int) -> None:
        """Make the weights (num_outputs, num_features)."""
        super().__init__(num_features, num_outputs)
        nn.init.zeros_(self.bias)
        self.scale = nn.Parameter(torch.tensor(_SCALE))

    def forward(self, features: Tensor) -> Tensor:
        """Give the scores (..., num_outputs) of features (..., num_features)."""
        directions = F.normalize(features, dim=-1, eps=_SHORT), F.normalize(self.weight, dim=-1, eps=_SHORT)
        cosines = F.linear(*directions)
        return self.scale.to(cosines.dtype) * cosines + self.bias.to(cosines.dtype)


def cosine_head(num_features: int, num_outputs: int, dropout: float = 0.0) -> nn.Module:
    """Scaled cosines between the features and a direction for each output, after dropout where it is asked for.

    Args:
        num_features: Width of the features, as in (N, num_features).
        num_outputs: Width of the answer, as in (N, num_outputs).
        dropout: Probability with which a feature is dropped in training.
    """
    cosine = CosineLinear(num_features, num_outputs)
    return nn.Sequential(nn.Dropout(dropout), cosine) if dropout else cosine


class AttentionHead(nn.Module):
    """Averages the feature map with learned weights for the places, instead of equal ones, before a linear layer.

    It is pooling by multi-head attention with one learned query (Lee et al. 2019, "Set Transformer",
    arXiv:1810.00825, section 3.2, with one seed vector), where a query that does not depend on the image and the map
    to keys are one matrix, and each attention head weights its own share of the channels as they are. The scores start
    at zero, and so the head at the plain average.
    """

    takes_map: ClassVar[bool] = True

    def __init__(self, num_features: int, num_outputs: int, dropout: float = 0.0) -> None:
        """Make a head of up to eight attention heads, as many as divide the channels.

        Args:
            num_features: Channels of the map, as in (N, num_features, H, W).
            num_outputs: Width of the answer, as in (N, num_outputs).
            dropout: Probability with which a feature is dropped in training.
        """
        super().__init__()
        self.num_features = num_features
        self.score = nn.Linear(num_features, math.gcd(num_features, 8), bias=False)
        nn.init.zeros_(self.score.weight)
        self.dropout = nn.Dropout(dropout)
        self.linear = _zero_linear(num_features, num_outputs)

    def forward(self, features: Tensor) -> Tensor:
        """Give the answer (N, num_outputs) for a map (N, num_features, H, W) or tokens (N, T, num_features)."""
        tokens = features.flatten(2).transpose(1, 2) if features.ndim == 4 else features
        weights = self.weights(tokens)
        parts = tokens.reshape(*weights.shape, -1)
        pooled = torch.einsum("nth,nthc->nhc", weights, parts).flatten(1)
        answer: Tensor = self.linear(self.dropout(pooled))
        return answer

    def weights(self, tokens: Tensor) -> Tensor:
        """Give the weight of each of T tokens (N, T, num_features) in each attention head: (N, T, heads), sums of 1."""
        scores: Tensor = self.score(F.layer_norm(tokens, (self.num_features,)))
        return scores.softmax(1)


def _zero_linear(num_features: int, num_outputs: int) -> nn.Linear:
    """Make the layer that answers, with weights of zero (Kolesnikov et al. 2020, "Big Transfer", section 3.3).

    Random weights are noise of the size of the features' norm, which a short training has to unlearn first; with
    zeros the result hardly depends on the learning rate.
    """
    linear = nn.Linear(num_features, num_outputs)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


_HEADS: dict[str, Callable[[int, int, float], nn.Module]] = {
    "linear": linear_head,
    "mlp": mlp_head,
    "cosine": cosine_head,
    "attention": AttentionHead,
}


def create_head(head: str | nn.Module, num_features: int, num_outputs: int, *, dropout: float = 0.0) -> nn.Module:
    """Make a head by name, or check that a given module fits between the features and the answer.

    Args:
        head: `"linear"`, `"mlp"`, `"cosine"`, `"attention"`, or a module that takes (N, num_features), or a map if it
            says so, and gives (N, num_outputs).
        num_features: Width of the features.
        num_outputs: Width of the answer.
        dropout: Probability with which a feature is dropped in training; a given module brings its own.

    Raises:
        ValueError: If no head has this name, a given module does not take features of this width or gives
            another number of outputs, or `dropout` comes with a module.
    """
    if isinstance(head, nn.Module):
        if dropout:
            raise ValueError(
                f"dropout={dropout} has no place in a head that is given as a module: put it into the module."
            )
        return check_head(head, num_features, num_outputs)
    if head not in _HEADS:
        near = difflib.get_close_matches(head, _HEADS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"head={head!r} is unknown; known are {sorted(_HEADS)}, or pass any nn.Module.{hint}")
    return _HEADS[head](num_features, num_outputs, dropout)


def takes_map(head: nn.Module) -> bool:
    """Whether a head takes the last feature map and not its average, as an attribute `takes_map` of it says."""
    return bool(getattr(head, "takes_map", False))


@torch.no_grad()
def check_head(head: nn.Module, num_features: int, num_outputs: int | None = None) -> nn.Module:
    """Run a head once on zeros and refuse it if the widths do not fit.

    The zeros have the shape (2, num_features), or (2, num_features, 2, 2) where the head takes a map.

    Args:
        head: The module to check; it is returned unchanged.
        num_features: Width of the features that it will get.
        num_outputs: Width that its answer must have; any if None.

    Raises:
        ValueError: If the head fails on such features, or gives another number of outputs.
    """
    parameter = next(head.parameters(), torch.empty(0))
    places = (2, 2) if takes_map(head) else ()
    features = torch.zeros(2, num_features, *places, device=parameter.device, dtype=parameter.dtype)
    modes = {module: module.training for module in head.modules()}
    try:
        answer: Tensor = head.eval()(features)
    except RuntimeError as error:
        raise ValueError(f"head does not take the backbone's {num_features} features: {error}") from error
    finally:
        for module, training in modes.items():
            module.training = training
    if num_outputs is not None and answer.shape[-1] != num_outputs:
        raise ValueError(f"head gives {answer.shape[-1]} outputs where {num_outputs} are needed.")
    return head


def set_bias_from_counts(head: nn.Module, counts: Sequence[int]) -> None:
    """Set the last linear layer's bias to the logarithms of the class frequencies: training starts at the prior.

    With zero features the softmax of the bias then gives each class its share of the data (Lin et al. 2017,
    "Focal Loss for Dense Object Detection", section 3.3, in its form for several classes). A class without an
    example counts as one.

    Args:
        head: A head whose last linear layer has one output for each class; one without such a layer is left alone.
        counts: Number of training examples of each class.
    """
    shares = torch.tensor(counts, dtype=torch.float64).clamp(min=1)
    _set_bias(head, (shares / shares.sum()).log())


def set_bias_from_rates(head: nn.Module, counts: Sequence[int], total: int) -> None:
    """Set the last linear layer's bias to the log odds of each label, as the paper of `set_bias_from_counts` does.

    With zero features the sigmoid of the bias then gives each label its rate in the data, with one example more that
    has it and one that has not (Laplace's rule), since a label that all or none of the images have has no finite odds.

    Args:
        head: A head whose last linear layer has one output for each label; one without such a layer is left alone.
        counts: Number of training examples that have each label.
        total: Number of training examples.
    """
    having = torch.tensor(counts, dtype=torch.float64) + 1
    _set_bias(head, (having / (total + 2 - having)).log())


@torch.no_grad()
def _set_bias(head: nn.Module, values: Tensor) -> None:
    linears = [module for module in head.modules() if isinstance(module, nn.Linear)]
    if linears and linears[-1].bias is not None and len(linears[-1].bias) == len(values):
        linears[-1].bias.copy_(values.to(linears[-1].bias))
