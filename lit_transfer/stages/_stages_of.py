"""The stages of any module, whoever wrote it."""

from __future__ import annotations

from torch import nn

from lit_transfer.stages._stage import Stage
from lit_transfer.stages._trace import trace_stages

__all__ = ["stages_of"]


def stages_of(module: nn.Module, *, input_size: int | None = None) -> tuple[Stage, ...]:
    return trace_stages(module, input_size or 224).stages
