"""Attention written as the operations that it is made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class SpelledOut(TorchFunctionMode):
    """While it is on, torch's fused attention is computed as products and a softmax; what is causal or grouped stays.

    torch.onnx translates the fused one for four axes only, which leaves out the windows of NesT, Twins and Hiera, and
    cannot take apart the one with a bias for positions of BEiT and Swin.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Take the place of one function."""
        options = kwargs or {}
        if func is F.scaled_dot_product_attention:
            found = _attention(*args, **options)
            if found is not None:
                return found
        return func(*args, **options)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    """Compute softmax(query key^T scale + mask) value, as `torch.nn.functional.scaled_dot_product_attention` has it.

    Args:
        query: (..., L, E).
        key: (..., S, E).
        value: (..., S, F).
        attn_mask: What is added to the products, (..., L, S); or True for those that take part.
        dropout_p: Share of the weights that is dropped.
        is_causal: Whether each place sees those before it alone.
        scale: One over the square root of E if None.
        enable_gqa: Whether several queries share a key.

    Returns:
        (..., L, F), or None for dropout, causal and grouped attention.
    """
    if dropout_p or is_causal or enable_gqa:
        return None
    products = (query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)) @ key.transpose(-2, -1)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        products = products.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        products = products + attn_mask
    return products.softmax(-1) @ value
