"""An exponential moving average of the weights, validated and saved in their place."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from typing_extensions import override

from lit_transfer.callbacks.feature_caching import FeatureCaching

__all__ = ["EMA"]


class EMA(WeightAveraging):
    """Averages weights and running statistics over the steps; validation, checkpoints and the end of a fit have these.

    After n steps an average is moved by 1 - min(decay, (1 + n) / (10 + n)) of its distance to the weights. The second
    term, from TensorFlow's `ExponentialMovingAverage`, lets short runs forget where they began: 0.999 alone would keep
    nine tenths of the first weights over a hundred steps.

    Lightning's `EMAWeightAveraging` differs in what goes wrong with transfer: it copies the whole module in `setup`,
    before a head that waits for the data is built, and with an optimizer of the command line, which cannot be copied;
    this one copies the tensors in `on_fit_start` (or when a checkpoint is loaded, shortly before). It averages what is
    frozen too, with rounding, where this one leaves it bit for bit; and a `test` after `fit` in the same Trainer loads
    the weights that are not averaged.

    A checkpoint has the average as `state_dict`, which every reader takes, and the weights that train as
    `current_model_state`, from which `fit` goes on.
    """

    def __init__(self, decay: float = 0.999) -> None:
        """Choose how far back the average reaches.

        Args:
            decay: Share of the average that each step keeps, after many steps; 0.999 is a memory of 1000 steps.

        Raises:
            ValueError: If it is not from 0 to below 1.
        """
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be a number from 0 to below 1, got {decay}.")
        super().__init__()
        self.decay = decay

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier fit.

        Raises:
            TypeError: The strategy divides parameters among processes.
        """
        self._average_model, self._latest_update_step = None, 0
        if stage == "fit" and not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            raise TypeError(f"EMA works on one device and with strategy='ddp'; got {type(trainer.strategy).__name__}.")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the weights as they are, now that the module is whole and other weights are loaded."""
        if self._average_model is None:
            self._begin(pl_module)

    def _begin(self, pl_module: LightningModule) -> None:
        bare = _bare(pl_module, {})
        self._average_model = AveragedModel(bare, pl_module.device, multi_avg_fn=self._average, use_buffers=True)

    @torch.no_grad()
    def _average(self, averages: Any, current: Any, _: Tensor | int) -> None:
        if not averages[0].is_floating_point():
            torch._foreach_copy_(averages, current)  # counts, such as of batches
            return
        steps = self._latest_update_step
        # What equals its average stays bitwise: lerp adds a multiple of the difference.
        torch._foreach_lerp_(averages, current, 1 - min(self.decay, (1 + steps) / (10 + steps)))

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exchange the weights for their average.

        Raises:
            ValueError: FeatureCaching serves features of weights whose average is another one.
        """
        settings: Any = trainer  # Lightning does not annotate what its connectors set
        if self._average_model is not None and any(isinstance(c, FeatureCaching) for c in settings.callbacks):
            self._refuse_lagging(pl_module)
        super().on_validation_epoch_start(trainer, pl_module)

    def _refuse_lagging(self, pl_module: LightningModule) -> None:
        assert self._average_model is not None
        averages = dict(self._average_model.module.named_parameters())
        for name, parameter in pl_module.named_parameters():
            if not parameter.requires_grad and not torch.equal(parameter, averages[name].to(parameter.device)):
                raise ValueError(
                    f"{name} has trained and is frozen by now: FeatureCaching serves the features of its last weights, "
                    "and EMA would have those of their average. Leave one of the two out, or let it train on."
                )

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on with both; `validate`, `test` and `predict` have the average, which is loaded already."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        if "current_model_state" not in checkpoint:
            rank_zero_info("EMA: the checkpoint has no average; it begins with the weights.")
            return
        self._begin(pl_module)
        assert self._average_model is not None
        known = self._average_model.module.state_dict()
        averages = {name: value for name, value in checkpoint["state_dict"].items() if name in known}
        super().on_load_checkpoint(trainer, pl_module, {**checkpoint, "state_dict": averages})

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write both; after the fit the module itself has the average."""
        if self._average_model is not None:
            super().on_save_checkpoint(trainer, pl_module, checkpoint)
            averages, current = checkpoint["state_dict"], checkpoint["current_model_state"]
            # What is no tensor, such as the extra state of a module, has no average.
            checkpoint["state_dict"] = {name: averages.get(name, value) for name, value in current.items()}

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the average, which the module has taken over, so that nothing is exchanged after the fit."""
        self._average_model = None


def _bare(module: nn.Module, made: dict[int, Any]) -> nn.Module:
    """Copy the tensors of a module under their names, and nothing else: a module may hold what cannot be copied.

    Args:
        module: The module.
        made: What is copied already, by the identity of the original: what is shared is shared in the copy.
    """
    if id(module) in made:
        shared: nn.Module = made[id(module)]
        return shared
    bare = made[id(module)] = nn.Module()
    for name, parameter in module._parameters.items():
        if parameter is not None and id(parameter) not in made:
            made[id(parameter)] = nn.Parameter(parameter.detach().clone(), requires_grad=False)
        bare.register_parameter(name, None if parameter is None else made[id(parameter)])
    for name, buffer in module._buffers.items():
        if buffer is not None and id(buffer) not in made:
            made[id(buffer)] = buffer.detach().clone()
        copied = None if buffer is None else made[id(buffer)]
        bare.register_buffer(name, copied, persistent=name not in module._non_persistent_buffers_set)
    for name, child in module._modules.items():
        bare.add_module(name, None if child is None else _bare(child, made))
    return bare
