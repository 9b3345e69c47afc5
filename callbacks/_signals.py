"""A scheduler that wants the machine back: the training is saved at the next safe point, and asks to be run again."""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.trainer.connectors.signal_connector import _HandlersCompose
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_transfer.callbacks._progress import is_open_window

__all__ = ["EXIT_CODE", "SaveOnSignal"]

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: a failure that is none of the program's, to be tried again


class SaveOnSignal(Callback):
    """On SIGTERM or SIGUSR1 writes `last-interrupted.ckpt` and ends the process with exit code 75.

    A safe point is after a batch that closes a window of accumulation, or amid a validation, which then runs again.
    Lightning leaves its loops by SIGTERMException there, once it is told of a signal; so the handler only notes it, and
    in `on_train_batch_end`, where all processes agree, Lightning is told. The checkpoint is written in `on_exception`:
    by then every other callback has finished the batch.

    Lightning's own handler for SIGTERM runs collectives wherever the signal comes; it is replaced while the loop runs.
    Its handler that requeues a SLURM job is called at the safe point only. A handler of the user's own for SIGTERM is
    called at once, as Lightning does, and one for SIGUSR1 is left alone.
    """

    def __init__(self, grace: float = 60.0) -> None:
        """Say how long to wait.

        Args:
            grace: Seconds after a signal in which a safe point must come; then the process ends all the same.
        """
        self.grace = grace
        self._received: signal.Signals | None = None
        self._agreed = False
        self._users: Any = None
        self._replaced: dict[signal.Signals, Any] = {}
        self._timer: threading.Timer | None = None

    # --- handlers -------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep the user's own handler: Lightning has not replaced it yet."""
        self._received, self._agreed = None, False
        self._users = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over from Lightning, which has put its handlers in place by now."""
        if threading.current_thread() is not threading.main_thread():
            return  # only there may handlers be set
        for name in ("SIGTERM", "SIGUSR1", "SIGUSR2"):
            number = getattr(signal, name, None)
            if number is not None and _is_ours_to_take(number):
                self._replaced[number] = signal.signal(number, self._note)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the handlers back, to Lightning, which then gives them back to whoever had them before."""
        self._give_back()

    def _note(self, number: int, frame: Any) -> None:
        if self._received is None:  # schedulers often send a signal to each process of a group, and again
            self._received = signal.Signals(number)
            self._timer = threading.Timer(self.grace, self._give_up)
            self._timer.daemon = True
            self._timer.start()
        if number == signal.SIGTERM and callable(self._users):
            self._users(number, frame)

    def _give_up(self) -> None:
        print(f"No batch ended within {self.grace:g} s after the signal: nothing saved.", file=sys.stderr, flush=True)
        os._exit(EXIT_CODE)

    def _give_back(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for number, handler in self._replaced.items():
            signal.signal(number, handler)
        self._replaced = {}

    # --- safe points ----------------------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Agree with the other processes which of them was signalled; Lightning then ends after this batch."""
        if is_open_window(trainer):
            return
        if trainer.world_size > 1:
            mine = torch.tensor(self._received or 0, device=trainer.strategy.root_device)
            number = int(trainer.strategy.reduce(mine, reduce_op="max"))
            self._received = signal.Signals(number) if number else None
        self._agreed = self._received is not None
        trainer._signal_connector.received_sigterm |= self._agreed

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not begin a validation: it might take longer than the scheduler waits."""
        if self._agreed and trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            raise SIGTERMException

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *rest: Any) -> None:
        """Leave a validation, unless it must be finished: by several processes, or with averaged weights in place."""
        if self._received is None or trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by its connector
        if trainer.world_size == 1 and not any(isinstance(callback, WeightAveraging) for callback in callbacks):
            raise SIGTERMException

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save, and let the process end with the code that asks to be run again."""
        handlers = dict(self._replaced)
        self._give_back()
        if not isinstance(exception, SIGTERMException) or trainer.state.fn != TrainerFn.FITTING:
            return
        # Processes that Lightning started must not seem to have failed: it would kill the one that started them.
        exception.code = EXIT_CODE if trainer.local_rank == 0 else 0
        requeue = handlers.get(self._received) if self._received not in (None, signal.SIGTERM) else None
        if callable(requeue):
            requeue(self._received, None)  # saves, and asks SLURM to run the job again
            return
        path = _folder(trainer) / f"{ModelCheckpoint.CHECKPOINT_NAME_LAST}-interrupted.ckpt"
        trainer.save_checkpoint(path)
        name = self._received.name if self._received else "A signal"
        rank_zero_info(
            f"{name} ended the training at epoch {trainer.current_epoch}, step {trainer.global_step}. It is saved in "
            f"{path} and goes on with ckpt_path='last'. Exit code {EXIT_CODE} asks the scheduler to run it again."
        )


def _is_ours_to_take(number: signal.Signals) -> bool:
    """Whether nobody but Lightning handles a signal; SIGUSR2 means something only where SLURM requeues by it."""
    handler = signal.getsignal(number)
    return isinstance(handler, _HandlersCompose) or (number.name == "SIGUSR1" and handler == signal.SIG_DFL)


def _folder(trainer: Trainer) -> Path:
    """Where `ckpt_path="last"` looks."""
    named = [c.dirpath for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.dirpath]
    return Path(named[0]) if named else Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints"
