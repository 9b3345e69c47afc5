"""Any training checkpoint as `ckpt_path`: the callback that stands between the Trainer and the file."""

from functools import partial
from typing import Any, Literal

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_transfer.callbacks._foreign_io import ForeignIO, guard, read_lightning, unguard
from lit_transfer.callbacks._lightning_checkpoint import as_lightning_checkpoint, count_steps
from lit_transfer.callbacks._optimizer_states import fill_optimizers, parameter_names
from lit_transfer.restore import ENTRY, TrainingState, is_as_written, read_training_state
from lit_transfer.weights import Checkpoint, WeightsError, open_checkpoint

__all__ = ["TolerantRestore"]


class TolerantRestore(Callback):
    """Lets `fit`, `validate`, `test` and `predict` take any training checkpoint as `ckpt_path`, for any module.

    Read are the files that `lit_transfer.weights` reads: Lightning's own, also with wrappers' prefixes in their names;
    dictionaries by hand with their weights, counters, optimizer, scheduler and best score under any usual name; whole
    pickled modules; weights alone. What cannot be carried over is told; what contradicts is refused before anything is
    touched. A checkpoint that Lightning can take as it is goes Lightning's own way.

    In `setup` the strategy's CheckpointIO is replaced by one that reads: it is the last hook before Lightning opens the
    file. Optimizers exist only in `on_fit_start`, right before Lightning restores them; there their state is put in
    order by the names of the parameters. `on_save_checkpoint` writes these names into every checkpoint, so that a later
    run may have other parameter groups. `teardown` gives the strategy its CheckpointIO back.
    """

    def __init__(
        self,
        *,
        target: str | None = None,
        key: str | None = None,
        head: list[str] | None = None,
        rename: dict[str, str] | None = None,
        epoch_means: Literal["finished", "next"] = "finished",
        optimizer: Literal["restore", "fresh"] = "restore",
        parameter_names: list[str] | None = None,
        best_score: bool = True,
    ) -> None:
        """Say what the file does not.

        Args:
            target: Dotted name of the submodule that the file's weights are for; found if not given.
            key: Which of the file's state dicts; found if not given. The trained network is taken, never its average.
            head: Dotted names of modules that may stay fresh; see `load_weights`.
            rename: Regular expression -> replacement, for names in the file that no search can know.
            epoch_means: Whether "epoch" in a file by hand is the last epoch that was finished, or the next to start.
            optimizer: "fresh" leaves the file's optimizer and scheduler out.
            parameter_names: Names, as the file's weights have them, in the order in which its optimizer lists its
                parameters; found if not given.
            best_score: Take over the file's best score, so that a worse epoch does not count as the best.
        """
        for name, choice, choices in (
            ("epoch_means", epoch_means, ("finished", "next")),
            ("optimizer", optimizer, ("restore", "fresh")),
        ):
            if choice not in choices:
                raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, got {choice!r}.")
        self._arguments: dict[str, Any] = {
            "target": target,
            "key": key,
            "head": head,
            "rename": rename,
            "epoch_means": epoch_means,
            "optimizer": optimizer,
            "parameter_names": parameter_names,
        }
        self._best_score = best_score
        self._opened: Checkpoint | None = None
        self._state: TrainingState | None = None
        self._checkpoint: dict[str, Any] | None = None
        self._told: list[str] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stand before the strategy's CheckpointIO."""
        self._forget()
        if not guard(trainer.strategy):
            io = trainer.strategy.checkpoint_io
            io = io.inner if isinstance(io, ForeignIO) else io  # after an exception there was no teardown
            trainer.strategy.checkpoint_io = ForeignIO(io, partial(self._read, trainer))

    def _read(self, trainer: Trainer, inner: CheckpointIO, path: str, weights_only: bool | None) -> dict[str, Any]:
        """Give Lightning the checkpoint in its own form.

        Raises:
            WeightsError: The file cannot be read or does not fit; nothing is touched.
        """
        self._forget()
        module = trainer.lightning_module
        self._opened = open_checkpoint(path)
        if is_as_written(self._opened, module.state_dict(), strict=module.strict_loading):
            self._checkpoint = read_lightning(inner, path, weights_only, self._opened, self._told)
            return self._checkpoint
        self._state = read_training_state(module, self._opened, **self._arguments)
        self._told += self._state.lost
        if trainer.state.fn != TrainerFn.FITTING and self._state.fresh:
            raise WeightsError(f"{path} does not fill {', '.join(self._state.fresh[:4])}: there is nothing to measure")
        if self._state.kind == "lightning":
            self._checkpoint = read_lightning(inner, path, weights_only, self._opened, self._told)
            self._checkpoint["state_dict"] = self._state.weights(module)
        else:
            self._checkpoint = as_lightning_checkpoint(
                self._state, trainer, path, best_score=self._best_score, told=self._told
            )
        return self._checkpoint

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the optimizers' states in order, and tell what was carried over and what was not."""
        if self._checkpoint is None or self._opened is None:
            return
        opened, state = self._opened, self._state
        by_position = self._arguments["optimizer"] == "restore" and (state is None or state.is_whole)
        told = fill_optimizers(
            self._checkpoint,
            trainer,
            lambda: state or read_training_state(pl_module, opened, **self._arguments),
            by_position=by_position,
        )
        if state is not None:
            rank_zero_info(f"TolerantRestore: {opened.name}: {state}")
        if told := [*self._told, *told]:
            rank_zero_warn(f"TolerantRestore: not all of {opened.name} is carried over: {'; '.join(told)}.")
        self._checkpoint = self._opened = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the steps of a file that does not, now that the length of an epoch is known."""
        if self._state is not None and self._state.step is None and self._state.epoch:
            count_steps(trainer, self._state.epoch)
        self._state = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write the names of the optimizers' parameters, by which a changed run finds their moments."""
        names = parameter_names(pl_module, trainer.optimizers)
        checkpoint[ENTRY] = {"parameter_names": names, "world_size": trainer.world_size}

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the strategy its CheckpointIO back."""
        unguard(trainer.strategy)
        if isinstance(io := trainer.strategy.checkpoint_io, ForeignIO):
            trainer.strategy.checkpoint_io = io.inner
        self._forget()

    def _forget(self) -> None:
        self._opened = self._state = self._checkpoint = None
        self._told = []
