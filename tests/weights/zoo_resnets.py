"""Layouts of residual networks, each made from a real model: what is in the file, and which code writes it."""

import copy
import re
from typing import Any

import torch
import torchvision
from layout_parts import State, body, noise, projector, under
from torch import nn


class Narrow(torchvision.models.ResNet):
    """An eighth of the channels: the same names, and files of half a megabyte."""

    def _make_layer(self, block: Any, planes: int, *args: Any, **options: Any) -> nn.Sequential:
        return super()._make_layer(block, planes // 8, *args, **options)


def resnet(classes: int = 10) -> nn.Module:
    torch.manual_seed(classes)
    model = Narrow(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])
    model.fc = nn.Linear(64, classes)
    return model


def numbered(model: nn.Module, without: int = 1) -> State:
    """The state of nn.Sequential(*children), the last ones left out."""
    return nn.Sequential(*list(model.children())[:-without]).state_dict()


def torchvision_itself(m: nn.Module) -> Any:
    """torchvision: a state dict (torchvision/models/resnet.py)."""
    return m.state_dict()


def imagenet_example(m: nn.Module) -> Any:
    """The ImageNet example, DataParallel (main.py of pytorch/examples, imagenet)."""
    return {"epoch": 9, "arch": "resnet18", "state_dict": under("module", m.state_dict()), "best_acc1": 1.0}


def before_0_4_1(m: nn.Module) -> Any:
    """Files of before torch 0.4.1, whose normalisation counted no batches (release notes of 0.4.1)."""
    return {name: tensor for name, tensor in m.state_dict().items() if not name.endswith("num_batches_tracked")}


def tutorials_pair(m: nn.Module) -> Any:
    """A whole model and a state dict side by side, as tutorials on saving do (pytorch.org/tutorials, saving models)."""
    return {"model": resnet(10), "model_state_dict": m.state_dict(), "optimizer": {}}


def moco_v1(m: nn.Module) -> Any:
    """MoCo: query encoder, key encoder, queue (moco/builder.py and main_moco.py of facebookresearch/moco)."""
    queue = {"module.queue": torch.rand(8, 4), "module.queue_ptr": torch.zeros(1, dtype=torch.int64)}
    key = under("module.encoder_k", noise(m.state_dict()))
    return {"state_dict": {**under("module.encoder_q", m.state_dict()), **key, **queue}}


def moco_v2(m: nn.Module) -> Any:
    """MoCo v2: a projector for a classifier (--mlp of moco/builder.py of facebookresearch/moco)."""
    query = under("module.encoder_q", {**body(m), **projector("fc")})
    return {"state_dict": {**query, **under("module.encoder_k", {**noise(body(m)), **projector("fc")})}}


def moco_v3(m: nn.Module) -> Any:
    """MoCo v3: base and momentum encoder, predictor (moco/builder.py of facebookresearch/moco-v3)."""
    base = under("module.base_encoder", {**body(m), **projector("fc")})
    momentum = under("module.momentum_encoder", {**noise(body(m)), **projector("fc")})
    return {"state_dict": {**base, **momentum, **projector("module.predictor")}}


def simclr(m: nn.Module) -> Any:
    """SimCLR in PyTorch: `backbone.` with a projector for a classifier (models/resnet_simclr.py of sthalles/SimCLR)."""
    return {"state_dict": under("backbone", {**body(m), **projector("fc")})}


def simsiam(m: nn.Module) -> Any:
    """SimSiam: `module.encoder.` and a predictor (simsiam/builder.py of facebookresearch/simsiam)."""
    encoder = under("module.encoder", {**body(m), **projector("fc")})
    return {"epoch": 99, "arch": "resnet50", "state_dict": {**encoder, **projector("module.predictor")}}


def byol(m: nn.Module) -> Any:
    """BYOL: online and target encoder (byol_pytorch.py of lucidrains/byol-pytorch)."""
    online, target = under("online_encoder.net", m.state_dict()), under("target_encoder.net", noise(m.state_dict()))
    return {**online, **target, **projector("online_predictor")}


def swav(m: nn.Module) -> Any:
    """SwAV: `module.`, projection head and prototypes (src/resnet50.py of facebookresearch/swav)."""
    return under("module", {**body(m), **projector("projection_head"), "prototypes.weight": torch.rand(9, 4)})


def barlow_twins(m: nn.Module) -> Any:
    """Barlow Twins: `module.backbone.` and projector (main.py of facebookresearch/barlowtwins)."""
    model = {**under("module.backbone", body(m)), **projector("module.projector")}
    return {"epoch": 1, "model": model | {"module.bn.running_mean": torch.rand(4)}, "optimizer": {"state": {}}}


def vicreg(m: nn.Module) -> Any:
    """VICReg: `module.backbone.` and a projector (main_vicreg.py of facebookresearch/vicreg)."""
    return {"epoch": 1, "model": {**under("module.backbone", body(m)), **projector("module.projector")}}


def vissl(m: nn.Module) -> Any:
    """VISSL: trunk and heads four dictionaries deep (extra_scripts/convert_vissl_to_torchvision.py of VISSL)."""
    model = {"trunk": under("_feature_blocks", body(m)), "heads": projector("0.clf")}
    return {"phase_idx": 1, "classy_state_dict": {"base_model": {"model": model}}}


def pycontrast(m: nn.Module) -> Any:
    """PyContrast: `encoder.` under DataParallel, its running mean being taken (learning/contrast_trainer.py)."""
    state = {**under("module.encoder", body(m)), **projector("module.head")}
    return {"epoch": 1, "model": noise(state), "model_ema": state}


def solo_learn(m: nn.Module) -> Any:
    """solo-learn: backbone, momentum backbone, online classifier (solo/methods/base.py of vturrisi/solo-learn)."""
    online = {**under("backbone", body(m)), **under("classifier", nn.Linear(64, 3).state_dict())}
    momentum = under("momentum_backbone", noise(body(m)))
    return {"state_dict": {**online, **momentum, **projector("projector")}, "optimizer_states": []}


def lightly(m: nn.Module) -> Any:
    """lightly: the children of the network in an nn.Sequential (tutorials of lightly-ai/lightly)."""
    return {"state_dict": {**under("backbone", numbered(m)), **projector("projection_head.layers")}}


def fastai(m: nn.Module) -> Any:
    """fastai: body and head in an nn.Sequential, without the pooling (create_body of fastai/vision/learner.py)."""
    head = under("1", nn.Sequential(nn.BatchNorm1d(128), nn.Linear(128, 8), nn.ReLU(), nn.Linear(8, 3)).state_dict())
    return {"model": {**under("0", numbered(m, 2)), **head}, "opt": {"hypers": [], "state": []}}


def lightning(m: nn.Module) -> Any:
    """Lightning: `model.` beside a loss with weights (trainer.save_checkpoint of lightning)."""
    return {
        "epoch": 1,
        "global_step": 3,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": {**under("model", m.state_dict()), "criterion.weight": torch.ones(10)},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5)}},
        "hyper_parameters": {"lr": 0.1},
    }


def timm_ema(m: nn.Module) -> Any:
    """timm's training script: weights beside their running mean, which is taken (timm/utils/checkpoint_saver.py)."""
    return {"arch": "resnet18", "state_dict": noise(m.state_dict()), "state_dict_ema": m.state_dict()}


def averaged_model(m: nn.Module) -> Any:
    """torch's AveragedModel: `module.` and a counter (torch/optim/swa_utils.py)."""
    return torch.optim.swa_utils.AveragedModel(m).state_dict()


def yolo_v5(m: nn.Module) -> Any:
    """YOLOv5: whole models, the running mean being taken (train.py of ultralytics/yolov5)."""
    return {"epoch": -1, "model": resnet(3), "ema": copy.deepcopy(m), "updates": 7, "optimizer": None}


def compiled(m: nn.Module) -> Any:
    """torch.compile: `_orig_mod.` in front (OptimizedModule of torch/_dynamo/eval_frame.py)."""
    return under("_orig_mod", m.state_dict())


def compiled_in_ddp(m: nn.Module) -> Any:
    """Compiled, then DistributedDataParallel."""
    return under("module._orig_mod", m.state_dict())


def compiled_blocks(m: nn.Module) -> Any:
    """Each block compiled: `_orig_mod` inside the names."""
    return {re.sub(r"^(layer\d)\.(\d)\.", r"\1.\2._orig_mod.", n): t for n, t in m.state_dict().items()}


def data_parallel_part(m: nn.Module) -> Any:
    """Only a part in DataParallel."""
    return {re.sub(r"^layer3\.", "layer3.module.", n): t for n, t in m.state_dict().items()}


def data_parallel_twice(m: nn.Module) -> Any:
    """DataParallel around DataParallel."""
    return under("module.module", m.state_dict())


def fsdp(m: nn.Module) -> Any:
    """FullyShardedDataParallel of some blocks (torch/distributed/fsdp)."""
    wrap = "_fsdp_wrapped_module."
    return {wrap + re.sub(r"^(layer\d)\.", rf"\1.{wrap}", n): t for n, t in m.state_dict().items()}


def checkpointed(m: nn.Module) -> Any:
    """Activation checkpointing of blocks (torch/distributed/algorithms/_checkpoint/checkpoint_wrapper.py)."""
    wrap = "_checkpoint_wrapped_module"
    return {re.sub(r"^(layer\d)\.(\d)\.", rf"\1.\2.{wrap}.", n): t for n, t in m.state_dict().items()}


def deepspeed(m: nn.Module) -> Any:
    """DeepSpeed without ZeRO, under Lightning: `module` and `_forward_module.` (deepspeed/runtime/engine.py)."""
    return {"module": under("_forward_module", m.state_dict()), "dp_world_size": 1}


def robustness(m: nn.Module) -> Any:
    """robustness: the network twice, the same tensors, with normalisers (robustness/attacker.py, MadryLab)."""
    norm = {"new_mean": torch.rand(3, 1, 1), "new_std": torch.rand(3, 1, 1)}
    own = {**under("module.normalizer", norm), **under("module.model", m.state_dict())}
    attacker = {**under("module.attacker.normalize", norm), **under("module.attacker.model", m.state_dict())}
    return {"model": {**own, **attacker}, "optimizer": {"state": {}}, "epoch": 3}


def mmpretrain(m: nn.Module) -> Any:
    """mmpretrain: `backbone.` and `head.fc.` (ImageClassifier of open-mmlab/mmpretrain)."""
    return {"meta": {}, "state_dict": {**under("backbone", body(m)), "head.fc.weight": torch.rand(3, 64)}}


def mmseg(m: nn.Module) -> Any:
    """mmsegmentation: `backbone.` and two decoding heads (EncoderDecoder of open-mmlab/mmsegmentation)."""
    heads = {
        "decode_head.conv_seg.weight": torch.rand(19, 8, 1, 1),
        "decode_head.convs.0.conv.weight": torch.rand(8, 64, 3, 3),
        "auxiliary_head.conv_seg.weight": torch.rand(19, 8, 1, 1),
    }
    return {"meta": {"CLASSES": ("road", "sky")}, "state_dict": {**under("backbone", body(m)), **heads}}


def torchvision_detector(m: nn.Module) -> Any:
    """torchvision's detectors: `backbone.body.` beside pyramid and heads (torchvision/models/detection)."""
    heads = {"backbone.fpn.inner_blocks.0.0.weight": torch.rand(4, 64, 1, 1), "roi_heads.box.weight": torch.rand(4, 4)}
    return {"model": {**under("backbone.body", body(m)), **heads}}


def torchvision_segmentation(m: nn.Module) -> Any:
    """torchvision's segmentation models: `backbone.` beside two classifiers (torchvision/models/segmentation)."""
    heads = {"classifier.0.weight": torch.rand(4, 64, 3, 3), "aux_classifier.0.weight": torch.rand(4, 32, 3, 3)}
    return {**under("backbone", body(m)), **heads}


def detectron2(m: nn.Module) -> Any:
    """detectron2: stages res2 to res5, norms inside convolutions (detectron2/modeling/backbone/resnet.py)."""
    return {"model": under("backbone.bottom_up", detectron2_names(body(m))), "__author__": "somebody"}


def detectron2_names(state: State) -> State:
    """Rename as detectron2 has it, which counts no batches."""
    names = {}
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        new = re.sub(r"^layer(\d)\.", lambda found: f"res{int(found[1]) + 1}.", name)
        new = re.sub(r"(^|\.)bn(\d)\.", r"\1conv\2.norm.", new)
        new = new.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
        names[re.sub(r"^conv1\.", "stem.conv1.", re.sub(r"^fc\.", "linear.", new))] = tensor
    return names


def pycls(m: nn.Module) -> Any:
    """pycls: stages s1 to s4 of blocks counted from 1 (pycls/models/resnet.py and core/checkpoint.py)."""
    return {"epoch": 99, "model_state": pycls_names(body(m), "stem", 1), "optimizer_state": {}, "cfg": "MODEL: ..."}


def pycls_of_before_2020(m: nn.Module) -> Any:
    """pycls' first versions: the stem as stage s1, blocks in s2 to s5 (pycls/models/resnet.py)."""
    return {"epoch": 99, "model_state": pycls_names(body(m), "s1", 2), "optimizer_state": {}}


def pycls_names(state: State, stem: str, first: int) -> State:
    """Rename as pycls has it."""
    names = {}
    for name, tensor in state.items():
        new = re.sub(r"^conv1\.", f"{stem}.conv.", re.sub(r"^bn1\.", f"{stem}.bn.", name))
        new = re.sub(r"^layer(\d)\.(\d)\.", lambda found: f"s{int(found[1]) + first - 1}.b{int(found[2]) + 1}.", new)
        new = new.replace("downsample.0.", "proj.").replace("downsample.1.", "bn.")
        new = re.sub(r"(?<=\d\.)bn(\d)\.", lambda found: f"f.{'abc'[int(found[1]) - 1]}_bn.", new)
        new = re.sub(r"(?<=\d\.)conv(\d)\.", lambda found: f"f.{'abc'[int(found[1]) - 1]}.", new)
        names[re.sub(r"^fc\.", "head.fc.", new)] = tensor
    return names


def timm_wrapper(m: nn.Module) -> Any:
    """transformers' wrapper of timm: `timm_model.` (models/timm_wrapper of huggingface/transformers)."""
    return under("timm_model", m.state_dict())


RESNETS = (
    torchvision_itself,
    before_0_4_1,
    imagenet_example,
    tutorials_pair,
    moco_v1,
    moco_v2,
    moco_v3,
    simclr,
    simsiam,
    byol,
    swav,
    barlow_twins,
    vicreg,
    vissl,
    pycontrast,
    solo_learn,
    lightly,
    fastai,
    lightning,
    timm_ema,
    averaged_model,
    yolo_v5,
    compiled,
    compiled_in_ddp,
    compiled_blocks,
    data_parallel_part,
    data_parallel_twice,
    fsdp,
    checkpointed,
    deepspeed,
    robustness,
    mmpretrain,
    mmseg,
    torchvision_detector,
    torchvision_segmentation,
    detectron2,
    pycls,
    pycls_of_before_2020,
    timm_wrapper,
)
