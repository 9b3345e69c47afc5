"""One fit in which the frozen front runs on a copy made for inference, as features cannot be stored."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lit_transfer.callbacks._feature_front import Front, find_front, follow_schedules
from lit_transfer.callbacks._feature_options import Options
from lit_transfer.features import StandIn

__all__ = ["FastRun"]


class FastRun:
    """Has a copy stand in for the frozen front, as long as that is as it is; loaders and random numbers stay."""

    def __init__(self, trainer: Trainer, module: LightningModule, backbone: str, options: Options) -> None:
        """Do nothing yet.

        Args:
            trainer: The trainer that fits.
            module: Its module.
            backbone: Dotted name of the backbone in it.
            options: What the user chose.
        """
        self._trainer, self._module, self._name, self._options = trainer, module, backbone, options
        self._stand_in: StandIn | None = None
        self._trained: list[bool] | None = None  # of each parameter of the backbone, when the front was found

    def begin(self) -> None:
        """Nothing is asked for before training starts."""

    def settle(self) -> None:
        """No random number was drawn."""

    def look(self, *, move: bool) -> None:
        """Have a copy stand in for what is frozen now.

        Args:
            move: Whether an epoch starts; it does not matter here.
        """
        follow_schedules(self._trainer, self._module)
        if self._trained is None:
            self._begin_with(find_front(self._module, self._name))
        self.check()

    def check(self) -> None:
        """Drop the copy when something of its front trains or has changed, and make another of what is frozen then."""
        if self._trains() != self._trained:
            self._begin_with(find_front(self._module, self._name))
        elif self._stand_in is not None and not self._stand_in.is_current():
            self.remove()  # they may change in each step: no copy is made anew
            rank_zero_info(
                f"FeatureCaching: weights of {self._name} have changed: from {self._when()} on it runs as it is."
            )

    def _begin_with(self, front: Front | None) -> None:
        self.remove()
        self._trained = self._trains()
        if front is None:
            rank_zero_info(
                f"FeatureCaching: from {self._when()} on the first stage of {self._name} trains: no copy runs."
            )
            return

        def tell(text: str) -> None:
            rank_zero_info(f"FeatureCaching: from {self._when()} on {front.where} {text}.")

        self._stand_in = StandIn(front.backbone, front.boundary, fast=self._options.fast, tell=tell)

    def _when(self) -> str:
        return f"epoch {self._trainer.current_epoch}, step {self._trainer.global_step}"

    def _trains(self) -> list[bool]:
        return [parameter.requires_grad for parameter in self._module.get_submodule(self._name).parameters()]

    def remove(self) -> None:
        """Leave everything as it was found."""
        if self._stand_in is not None:
            self._stand_in.remove()
        self._stand_in = None
