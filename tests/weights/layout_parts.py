"""What the layouts of checkpoints are put together from."""

from argparse import Namespace
from typing import Any

import torch
from torch import Tensor, nn

State = dict[str, Tensor]

ARGS = Namespace(lr=0.1, output_dir="out", model="vit_tiny")  # scripts save what argparse gave them
TEXT = {  # the text tower of CLIP, whose names are those of the visual one
    "positional_embedding": torch.rand(7, 64),
    "text_projection": torch.rand(64, 32),
    "logit_scale": torch.tensor(1.0),
    "transformer.resblocks.0.ln_1.weight": torch.rand(64),
    "token_embedding.weight": torch.rand(9, 64),
    "ln_final.weight": torch.rand(64),
    "ln_final.bias": torch.rand(64),
}


def body(model: nn.Module) -> State:
    """The state without the classifier."""
    return {n: t.clone() for n, t in model.state_dict().items() if not n.startswith(("fc.", "head.", "heads."))}


def under(prefix: str, state: State) -> State:
    return {f"{prefix}.{name}": tensor for name, tensor in state.items()}


def noise(state: State) -> State:
    return {name: torch.rand_like(t) if t.is_floating_point() else t for name, t in state.items()}


def numbered(model: nn.Module, without: int = 1) -> State:
    """The state of nn.Sequential(*children), the last ones left out."""
    return nn.Sequential(*list(model.children())[:-without]).state_dict()


def head(name: str, *layers: nn.Module) -> State:
    return under(name, nn.Sequential(*layers).state_dict())


def projector(name: str) -> State:
    return head(name, nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))


def plain_projector(name: str) -> State:
    """Without a normalisation."""
    return head(name, nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))


def normed_projector(name: str, hidden: int = 1) -> State:
    """As many hidden layers and one more, none with a bias, and a last normalisation without weights."""
    layers = [nn.Linear(64, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU()]
    layers += [nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU()] * (hidden - 1)
    return head(name, *layers, nn.Linear(8, 4, bias=False), nn.BatchNorm1d(4, affine=False))


def dino_head(name: str, *extra: str) -> State:
    """Three layers, then prototypes under weight normalisation, and as many more of them as there are names."""
    prototypes = {"weight_g": torch.ones(9, 1), "weight_v": torch.rand(9, 4)}
    state = head("mlp", nn.Linear(48, 8), nn.GELU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4))
    for layer in ("last_layer", *extra):
        state |= under(layer, prototypes)
    return under(name, state)


def optimizer(state: State) -> dict[str, Any]:
    """What SGD remembers: a tensor of the shape of each parameter, under numbers."""
    moments = [torch.rand_like(t) for n, t in state.items() if t.is_floating_point() and "running" not in n]
    return {
        "state": {i: {"momentum_buffer": moment} for i, moment in enumerate(moments)},
        "param_groups": [{"lr": 0.1, "momentum": 0.9, "params": list(range(len(moments)))}],
    }


def trained(key: str, state: State, **more: Any) -> dict[str, Any]:
    """A checkpoint to go on from: a state under a key, the optimizer and the epoch, and what else a project saves."""
    return {"epoch": 99, key: state, "optimizer": optimizer(state), **more}
