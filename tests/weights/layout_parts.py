"""What the layouts of checkpoints are put together from."""

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


def body(model: nn.Module) -> State:
    """The state without the classifier."""
    return {n: t.clone() for n, t in model.state_dict().items() if not n.startswith(("fc.", "head.", "heads."))}


def under(prefix: str, state: State) -> State:
    return {f"{prefix}.{name}": tensor for name, tensor in state.items()}


def noise(state: State) -> State:
    return {name: torch.rand_like(t) if t.is_floating_point() else t for name, t in state.items()}


def projector(name: str) -> State:
    return under(name, nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)).state_dict())
