"""Heads: what turns a backbone's features into answers."""

import difflib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


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


def _zero_linear(num_features: int, num_outputs: int) -> nn.Linear:
    """Make the layer that answers, with weights of zero (Kolesnikov et al. 2020, "Big Transfer", section 3.3).

    Random weights are noise of the size of the features' norm, which a short training has to unlearn first; with
    zeros the result hardly depends on the learning rate.
    """
    linear = nn.Linear(num_features, num_outputs)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


_HEADS: dict[str, Callable[[int, int, float], nn.Module]] = {"linear": linear_head, "mlp": mlp_head}


def create_head(head: str | nn.Module, num_features: int, num_outputs: int, *, dropout: float = 0.0) -> nn.Module:
    """Make a head by name, or check that a given module fits between the features and the answer.

    Args:
        head: `"linear"`, `"mlp"`, or a module that takes (N, num_features) and gives (N, num_outputs).
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


@torch.no_grad()
def check_head(head: nn.Module, num_features: int, num_outputs: int | None = None) -> nn.Module:
    """Run a head once on zeros of shape (2, num_features) and refuse it if the widths do not fit.

    Args:
        head: The module to check; it is returned unchanged.
        num_features: Width of the features that it will get.
        num_outputs: Width that its answer must have; any if None.

    Raises:
        ValueError: If the head fails on such features, or gives another number of outputs.
    """
    parameter = next(head.parameters(), torch.empty(0))
    features = torch.zeros(2, num_features, device=parameter.device, dtype=parameter.dtype)
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
