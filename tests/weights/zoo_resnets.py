"""Layouts of residual networks, each made from a real model: what is in the file, and which code writes it."""

import copy
import re
from typing import Any

import torch
import torchvision
from layout_parts import ARGS, State, body, head, noise, numbered, optimizer, trained, under
from torch import nn
from zoo_self_supervised import SELF_SUPERVISED


class Narrow(torchvision.models.ResNet):
    """An eighth of the channels: the same names, and files of half a megabyte."""

    def _make_layer(self, block: Any, planes: int, *args: Any, **options: Any) -> nn.Sequential:
        return super()._make_layer(block, planes // 8, *args, **options)


def resnet(classes: int = 10) -> nn.Module:
    torch.manual_seed(classes)
    model = Narrow(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])
    model.fc = nn.Linear(64, classes)
    return model


def torchvision_itself(m: nn.Module) -> Any:
    """torchvision: a state dict (torchvision/models/resnet.py)."""
    return m.state_dict()


def imagenet_example(m: nn.Module) -> Any:
    """The ImageNet example, DataParallel (imagenet/main.py of pytorch/examples)."""
    return trained("state_dict", under("module", m.state_dict()), arch="resnet18", best_acc1=1.0)


def before_0_4_1(m: nn.Module) -> Any:
    """Files of before torch 0.4.1, whose normalisation counted no batches (release notes of 0.4.1)."""
    return {name: tensor for name, tensor in m.state_dict().items() if not name.endswith("num_batches_tracked")}


def tutorial(m: nn.Module) -> Any:
    """The tutorial on saving: `model_state_dict` (beginner_source/saving_loading_models.py of pytorch/tutorials)."""
    state = m.state_dict()
    return {"epoch": 3, "model_state_dict": state, "optimizer_state_dict": optimizer(state), "loss": torch.tensor(0.5)}


def whole_and_state(m: nn.Module) -> Any:
    """A whole model and a state dict side by side."""
    return {"model": resnet(10), "model_state_dict": m.state_dict(), "optimizer": {}}


def fastai(m: nn.Module) -> Any:
    """fastai: body and head in an nn.Sequential, without the pooling (create_body of fastai/vision/learner.py)."""
    pool, flat, drop = nn.Identity(), nn.Flatten(), nn.Dropout()
    first = nn.BatchNorm1d(128), drop, nn.Linear(128, 8, bias=False), nn.ReLU()
    last = nn.BatchNorm1d(8), drop, nn.Linear(8, 3, bias=False)
    model = {**under("0", numbered(m, 2)), **head("1", pool, flat, *first, *last)}
    moments = [{"grad_avg": torch.rand_like(t)} for t in model.values() if t.is_floating_point()]
    return {"model": model, "opt": {"hypers": [{"lr": 0.1}], "state": moments}}


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
    more = {"arch": "resnet18", "version": 2, "state_dict_ema": m.state_dict(), "metric": 70.0}
    return trained("state_dict", noise(m.state_dict()), **more)


def averaged_model(m: nn.Module) -> Any:
    """torch's AveragedModel: `module.` and a counter (torch/optim/swa_utils.py)."""
    return torch.optim.swa_utils.AveragedModel(m).state_dict()


def yolo_v5(m: nn.Module) -> Any:
    """YOLOv5: whole models in half precision, the running mean being taken (train.py of ultralytics/yolov5)."""
    m.half().float()  # what half precision can hold
    more = {"best_fitness": 0.5, "ema": copy.deepcopy(m).half(), "updates": 7, "opt": {"epochs": 9}, "date": "2024"}
    return {"epoch": 3, "model": resnet(3).half(), "optimizer": optimizer(m.state_dict()), **more}


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
    """FullyShardedDataParallel of some blocks, as named_parameters has it (torch/distributed/fsdp/_common_utils.py)."""
    wrap = "_fsdp_wrapped_module."
    return {wrap + re.sub(r"^(layer\d)\.", rf"\1.{wrap}", n): t for n, t in m.state_dict().items()}


def checkpointed(m: nn.Module) -> Any:
    """Activation checkpointing of blocks, as named_parameters has it
    (torch/distributed/algorithms/_checkpoint/checkpoint_wrapper.py)."""
    wrap = "_checkpoint_wrapped_module"
    return {re.sub(r"^(layer\d)\.(\d)\.", rf"\1.\2.{wrap}.", n): t for n, t in m.state_dict().items()}


def deepspeed(m: nn.Module) -> Any:
    """DeepSpeed without ZeRO, under Lightning before 2.1: `module` and `_forward_module.` (deepspeed/runtime/engine.py
    and lightning/pytorch/utilities/deepspeed.py)."""
    state = under("_forward_module.model", m.state_dict())
    more = {"buffer_names": ["bn1.running_mean"], "dp_world_size": 1, "ds_version": "0.9.0", "global_step": 3}
    return {"module": state, "optimizer": optimizer(state), "lr_scheduler": None, **more}


def robustness(m: nn.Module) -> Any:
    """robustness: the network twice, the same tensors, with normalisers (robustness/attacker.py and train.py of
    MadryLab/robustness)."""
    norm = {"new_mean": torch.rand(3, 1, 1), "new_std": torch.rand(3, 1, 1)}
    own = {**under("module.normalizer", norm), **under("module.model", m.state_dict())}
    attacker = {**under("module.attacker.normalize", norm), **under("module.attacker.model", m.state_dict())}
    return trained("model", {**own, **attacker}, schedule=None, amp="N/A")


def mmpretrain(m: nn.Module) -> Any:
    """mmpretrain: `backbone.` and `head.fc.` (mmpretrain/models/heads/linear_head.py of open-mmlab/mmpretrain)."""
    classifier = under("head.fc", nn.Linear(64, 3).state_dict())
    return {"meta": {}, "state_dict": {**under("backbone", body(m)), **classifier}}


def mmseg(m: nn.Module) -> Any:
    """mmsegmentation: `backbone.` and two decoding heads (encoder_decoder.py of open-mmlab/mmsegmentation)."""
    state = under("backbone", body(m))
    for name in ("decode_head", "auxiliary_head"):
        state |= under(f"{name}.conv_seg", nn.Conv2d(8, 19, 1).state_dict())
        state |= under(f"{name}.convs.0.conv", nn.Conv2d(64, 8, 3, bias=False).state_dict())
        state |= under(f"{name}.convs.0.bn", nn.BatchNorm2d(8).state_dict())
    return {"meta": {"CLASSES": ("road", "sky")}, "state_dict": state, "optimizer": optimizer(state)}


def torchvision_detector(m: nn.Module) -> Any:
    """torchvision's detectors: `backbone.body.` beside pyramid and heads (torchvision/models/detection/faster_rcnn.py
    and references/detection/train.py of pytorch/vision)."""
    parts = {
        "backbone.fpn.inner_blocks.0.0": nn.Conv2d(64, 4, 1),
        "backbone.fpn.layer_blocks.0.0": nn.Conv2d(4, 4, 3),
        "rpn.head.conv.0.0": nn.Conv2d(4, 4, 3),
        "roi_heads.box_head.fc6": nn.Linear(64, 8),
        "roi_heads.box_predictor.cls_score": nn.Linear(8, 3),
    }
    state = under("backbone.body", body(m))
    for name, part in parts.items():
        state |= under(name, part.state_dict())
    return trained("model", state, args=ARGS, lr_scheduler={"last_epoch": 3})


def torchvision_segmentation(m: nn.Module) -> Any:
    """torchvision's segmentation models: `backbone.` beside two classifiers (torchvision/models/segmentation)."""
    state = under("backbone", body(m))
    for name, width in (("classifier", 64), ("aux_classifier", 32)):
        layers = nn.Conv2d(width, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Conv2d(4, 3, 1)
        state |= head(name, *layers)
    return state


def detectron2(m: nn.Module) -> Any:
    """detectron2: stages res2 to res5, norms inside convolutions (detectron2/modeling/backbone/resnet.py)."""
    pyramid = under("backbone.fpn_lateral2", nn.Conv2d(64, 4, 1).state_dict())
    state = under("backbone.bottom_up", detectron2_names(body(m))) | pyramid
    return {"model": state, "optimizer": optimizer(state), "scheduler": {"last_epoch": 3}, "iteration": 3}


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
    tutorial,
    whole_and_state,
    *SELF_SUPERVISED,
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
