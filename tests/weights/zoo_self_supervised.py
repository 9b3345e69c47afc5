"""Layouts of residual networks trained without labels, each made from a real model: what is in the file, and which code
writes it."""

from typing import Any

import torch
from layout_parts import (
    State,
    body,
    head,
    noise,
    normed_projector,
    numbered,
    optimizer,
    plain_projector,
    projector,
    trained,
    under,
)
from torch import nn


def moco_v1(m: nn.Module) -> Any:
    """MoCo: query encoder, key encoder, queue (moco/builder.py and main_moco.py of facebookresearch/moco)."""
    return _moco(m.state_dict(), m.state_dict())


def moco_v2(m: nn.Module) -> Any:
    """MoCo v2: a projector for a classifier (--mlp of moco/builder.py of facebookresearch/moco)."""
    return _moco(body(m) | plain_projector("fc"), body(m) | plain_projector("fc"))


def _moco(query: State, key: State) -> Any:
    queue = {"module.queue": torch.rand(8, 4), "module.queue_ptr": torch.zeros(1, dtype=torch.int64)}
    encoders = under("module.encoder_q", query) | under("module.encoder_k", noise(key))
    return trained("state_dict", encoders | queue, arch="resnet50")


def moco_v3(m: nn.Module) -> Any:
    """MoCo v3: base and momentum encoder, predictor (moco/builder.py and main_moco.py of facebookresearch/moco-v3)."""
    base = under("module.base_encoder", {**body(m), **normed_projector("fc")})
    momentum = under("module.momentum_encoder", {**noise(body(m)), **normed_projector("fc")})
    state = {**base, **momentum, **normed_projector("module.predictor")}
    return trained("state_dict", state, arch="resnet50", scaler={"scale": 65536.0})


def simclr(m: nn.Module) -> Any:
    """SimCLR in PyTorch: `backbone.` with a projector for a classifier (models/resnet_simclr.py of sthalles/SimCLR)."""
    return trained("state_dict", under("backbone", {**body(m), **plain_projector("fc")}), arch="resnet18")


def simsiam(m: nn.Module) -> Any:
    """SimSiam: `module.encoder.` and a predictor (simsiam/builder.py of facebookresearch/simsiam)."""
    encoder = under("module.encoder", {**body(m), **normed_projector("fc", hidden=2), "fc.6.bias": torch.rand(4)})
    layers = nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)
    return trained("state_dict", {**encoder, **head("module.predictor", *layers)}, arch="resnet50")


def byol(m: nn.Module) -> Any:
    """BYOL: network, the same as the online encoder, target encoder (byol_pytorch.py of lucidrains/byol-pytorch)."""
    net = under("net", m.state_dict())
    online = under("online_encoder", net | projector("projector"))
    target = under("target_encoder", noise(net) | projector("projector"))
    return {**net, **online, **target, **projector("online_predictor")}


def swav(m: nn.Module) -> Any:
    """SwAV: `module.`, projection head and prototypes (src/resnet50.py and hubconf.py of facebookresearch/swav)."""
    return under("module", {**body(m), **projector("projection_head"), "prototypes.weight": torch.rand(9, 4)})


def swav_training(m: nn.Module) -> Any:
    """SwAV in training: the same under `state_dict` (main_swav.py of facebookresearch/swav)."""
    return trained("state_dict", swav(m), amp={"loss_scaler0": {"loss_scale": 65536.0, "unskipped": 3}})


def barlow_twins(m: nn.Module) -> Any:
    """Barlow Twins: `module.backbone.` and projector (main.py of facebookresearch/barlowtwins)."""
    last = under("module.bn", nn.BatchNorm1d(4, affine=False).state_dict())
    layers = nn.Linear(64, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4, bias=False)
    return trained("model", {**under("module.backbone", body(m)), **head("module.projector", *layers), **last})


def vicreg(m: nn.Module) -> Any:
    """VICReg: `module.backbone.` and a projector (main_vicreg.py of facebookresearch/vicreg)."""
    layers = nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4, bias=False)
    return trained("model", {**under("module.backbone", body(m)), **head("module.projector", *layers)})


def vissl(m: nn.Module) -> Any:
    """VISSL: trunk and heads four dictionaries deep (extra_scripts/convert_vissl_to_torchvision.py of VISSL)."""
    model = {"trunk": under("_feature_blocks", body(m)), "heads": projector("0.clf")}
    return {"phase_idx": 1, "classy_state_dict": {"base_model": {"model": model}}}


def pycontrast(m: nn.Module) -> Any:
    """PyContrast: `encoder.` under DataParallel, and its running mean, which is taken, without
    (pycontrast/learning/contrast_trainer.py of HobbitLong/PyContrast)."""
    state = {**under("encoder", body(m)), **plain_projector("head")}
    queue = {"memory": torch.rand(8, 4)}
    return trained("model", under("module", noise(state)), contrast=queue, model_ema=state)


def solo_learn(m: nn.Module) -> Any:
    """solo-learn: backbone, momentum backbone, online classifier (solo/methods/base.py and byol.py of
    vturrisi/solo-learn)."""
    online = {**under("backbone", body(m)), **under("classifier", nn.Linear(64, 3).state_dict())}
    momentum = {**under("momentum_backbone", noise(body(m))), **projector("momentum_projector")}
    state = {**online, **momentum, **projector("projector"), **projector("predictor")}
    return {"epoch": 9, "state_dict": state, "optimizer_states": [optimizer(state)]}


def lightly(m: nn.Module) -> Any:
    """lightly: the children of the network in an nn.Sequential (tutorial_simclr_clothing.py of lightly-ai/lightly)."""
    return {"state_dict": {**under("backbone", numbered(m)), **plain_projector("projection_head.layers")}}


SELF_SUPERVISED = (
    moco_v1,
    moco_v2,
    moco_v3,
    simclr,
    simsiam,
    byol,
    swav,
    swav_training,
    barlow_twins,
    vicreg,
    vissl,
    pycontrast,
    solo_learn,
    lightly,
)
