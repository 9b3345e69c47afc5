"""Any training checkpoint as `ckpt_path`: the callback that stands between the Trainer and the file."""

from functools import partial
from typing import Any, Literal

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from lit_transfer.callbacks._checkpoint_io import install, uninstall
from lit_transfer.callbacks._lightning_checkpoint import count_steps
from lit_transfer.callbacks._optimizer_states import parameter_names
from lit_transfer.callbacks._reading import Reading, read_for
from lit_transfer.callbacks._refusals import refuse_lost_schedule
from lit_transfer.callbacks._resume_state import ExactResume
from lit_transfer.callbacks._sharded import fill_sharded, reads_by_itself, take_over, withdraw
from lit_transfer.callbacks._signals import SaveOnSignal
from lit_transfer.restore import ENTRY

__all__ = ["TolerantRestore"]


class TolerantRestore(Callback):
    """Lets `fit`, `validate`, `test` and `predict` take any training checkpoint as `ckpt_path`, for any module.

    Read are the files that `lit_transfer.weights` reads: Lightning's own, also with wrappers' prefixes in their names;
    dictionaries by hand with their weights, counters, optimizer, scheduler and best score under any usual name; whole
    pickled modules; weights alone. What cannot be carried over is told; what contradicts is refused before anything is
    touched. A checkpoint that Lightning can take as it is goes Lightning's own way.

    Its own checkpoints are written whole or not at all, are verified when they are read, and hold all that a run needs
    to end bitwise like an uninterrupted one. SIGTERM and SIGUSR1 save the training and end the process with code 75.

    In `setup` the strategy's CheckpointIO is replaced by one that reads: it is the last hook before Lightning opens the
    file. Optimizers exist only in `on_fit_start`, right before Lightning restores them; there their state is put in
    order by the names of the parameters. `on_save_checkpoint` writes these names into every checkpoint, so that a later
    run may have other parameter groups. ExactResume and SaveOnSignal, callbacks of their own, are put beside this one;
    each says which hooks it uses. `teardown` gives the strategy its CheckpointIO back.
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
        grace: float | None = 60.0,
    ) -> None:
        """Say what the file does not, and what happens on a signal.

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
            grace: Seconds after SIGTERM or SIGUSR1 in which the training can be saved; None to leave signals alone.
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
        self._reading: Reading | None = None
        self._beside: list[Callback] = [ExactResume(), *([] if grace is None else [SaveOnSignal(grace)])]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stand before the strategy's CheckpointIO, and call the callbacks beside this one, from this hook on."""
        self._reading = None
        install(trainer.strategy, partial(self._read, trainer))
        if reads_by_itself(trainer.strategy):
            take_over(trainer, partial(self._read_sharded, trainer))
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by its connector
        place = callbacks.index(self) + 1
        callbacks[place:place] = [callback for callback in self._beside if callback not in callbacks]

    def _read(self, trainer: Trainer, inner: CheckpointIO, path: str, weights_only: bool | None) -> dict[str, Any]:
        self._reading = read_for(trainer, inner, path, weights_only, self._arguments, best_score=self._best_score)
        return self._reading.checkpoint

    def _read_sharded(self, trainer: Trainer, path: str, weights_only: bool | None) -> dict[str, Any]:
        checkpoint = self._read(trainer, trainer.strategy.checkpoint_io, path, weights_only)
        self.on_fit_start(trainer, trainer.lightning_module)  # such strategies read after that hook
        fill_sharded(trainer, checkpoint)
        return checkpoint

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the optimizers' states in order."""
        if self._reading is not None and trainer.state.fn == TrainerFn.FITTING:
            self._reading.fill_optimizers(trainer, self._arguments)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the steps of a file that does not, now that the length of an epoch is known."""
        state = self._reading.state if self._reading is not None else None
        if state is not None and state.kind != "lightning" and state.step is None and state.epoch:
            count_steps(trainer, state.epoch)
        self._reading = None

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on without the schedule that the checkpoint's run had."""
        refuse_lost_schedule(trainer, checkpoint)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write the names of the optimizers' parameters, by which a changed run finds their moments."""
        checkpoint[ENTRY] = {"parameter_names": parameter_names(pl_module, trainer.optimizers)}

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the strategy its CheckpointIO back."""
        self._reading = None
        withdraw(trainer.strategy)
        uninstall(trainer.strategy)
