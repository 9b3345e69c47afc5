"""One step of fine-tuning the whole network, all tools taking turns in one process.

Each tool's loop runs in a thread of its own and hands over after each step, so that whatever slows the machine down
slows all of them. A step is the time from one batch to the next: what a loop logs and schedules belongs to it.
"""

from __future__ import annotations

import argparse
import copy
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from common import Net, Plain, backbone_of, trainer
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lit_transfer.modules import ImageClassifier

PAIRS, WARM_UP, RATE = 20, 2, 1e-4


class Turns:
    """Lets one loop at a time take one step."""

    def __init__(self, names: list[str]) -> None:
        self.seconds: dict[str, list[float]] = {name: [] for name in names}
        self._order, self._turn, self._began = list(names), 0, 0.0
        self._changed = threading.Condition()

    def lap(self, name: str, *, first: bool = False) -> None:
        """End a step of this loop, and wait for the next one to begin."""
        took = time.perf_counter() - self._began
        with self._changed:
            if not first:
                self.seconds[name].append(took)
                self._turn = (self._turn + 1) % len(self._order)
                self._changed.notify_all()
            self._changed.wait_for(lambda: self._order[self._turn] == name)
        self._began = time.perf_counter()

    def leave(self, name: str) -> None:
        """Take no further part."""
        with self._changed:
            self._order.remove(name)
            self._turn %= max(1, len(self._order))
            self._changed.notify_all()


class Laps(Callback):
    """Hands over before each batch of a Trainer."""

    def __init__(self, lap: Callable[[], None]) -> None:
        self.lap = lap

    def on_train_batch_start(self, *_: Any) -> None:
        """Let the others take their step."""
        self.lap()


def measure(arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Give the seconds of each step of each tool."""
    tools = {
        "lit_transfer": _ours,
        "by hand, channels_last": partial(_expert, layout=torch.channels_last),
        "by hand": partial(_expert, layout=torch.contiguous_format),
        "BackboneFinetuning": _lightning,
        "fastai": _fastai,
    }
    backbone, turns, errors = backbone_of(arguments), Turns(list(tools)), []
    batch = torch.randn(arguments.batch, 3, 224, 224), torch.arange(arguments.batch) % 2

    def run(name: str) -> None:
        try:
            turns.lap(name, first=True)
            loader = DataLoader([batch] * (PAIRS + WARM_UP + 1), batch_size=None)
            tools[name](copy.deepcopy(backbone), loader, partial(turns.lap, name))
        except BaseException as error:  # raised again below
            errors.append(error)
        finally:
            turns.leave(name)

    threads = [threading.Thread(target=run, args=(name,)) for name in tools]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        raise error
    # The first lap is the tool's own setting up.
    return {name: seconds[1 + WARM_UP : 1 + WARM_UP + PAIRS] for name, seconds in turns.seconds.items()}


def _ours(backbone: nn.Module, loader: DataLoader[Any], lap: Callable[[], None]) -> None:
    module = ImageClassifier(backbone, num_classes=2)
    trainer(max_epochs=1, callbacks=[Laps(lap)]).fit(module, loader)


def _expert(backbone: nn.Module, loader: DataLoader[Any], lap: Callable[[], None], layout: torch.memory_format) -> None:
    net = Net(backbone).train().to(memory_format=layout)
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(loader))
    for images, targets in _handing_over(loader, lap):
        optimizer.zero_grad()
        F.cross_entropy(net(images.contiguous(memory_format=layout)), targets).backward()
        optimizer.step()
        scheduler.step()


def _handing_over(loader: DataLoader[Any], lap: Callable[[], None]) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in loader:
        lap()
        yield batch


def _lightning(backbone: nn.Module, loader: DataLoader[Any], lap: Callable[[], None]) -> None:
    callbacks = [BackboneFinetuning(unfreeze_backbone_at_epoch=0, backbone_initial_lr=RATE), Laps(lap)]
    trainer(max_epochs=1, callbacks=callbacks).fit(Plain(backbone, RATE), loader)


def _fastai(backbone: nn.Module, loader: DataLoader[Any], lap: Callable[[], None]) -> None:
    from fastai.vision.all import Callback as FastaiCallback
    from fastai.vision.all import DataLoaders, Learner

    class HandingOver(FastaiCallback):  # type: ignore[misc]  # fastai has no types
        def before_batch(self) -> None:
            lap()

    learner = Learner(DataLoaders(loader, loader), Net(backbone), loss_func=F.cross_entropy, cbs=[HandingOver()])
    with learner.no_bar(), learner.no_logging():
        learner.fit(1, RATE)  # its validation comes after the steps that count
