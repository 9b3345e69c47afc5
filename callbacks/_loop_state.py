"""Where Lightning's loops go on after a checkpoint, put right where they lose a step. Its private parts are used here.

The counters and stages are those of Lightning 2.6: loops/fit_loop.py and loops/training_epoch_loop.py.
"""

from typing import Any, cast

from lightning.pytorch import Trainer
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.loops.progress import _ProcessedTracker

__all__ = [
    "end_of_epoch",
    "follow_place",
    "forget_begun_validation",
    "is_batch_end",
    "is_validation_due",
    "loaders_again",
    "step_plateau_schedulers",
]


def is_batch_end(trainer: Trainer) -> bool:
    """Return whether the hooks `on_train_batch_end` are being called."""
    batches = cast("_ProcessedTracker", trainer.fit_loop.epoch_loop.batch_progress.total)
    return batches.completed < batches.processed


def is_validation_due(trainer: Trainer) -> bool:
    """Return, in `on_train_batch_end`, whether a validation follows."""
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def end_of_epoch(loop: dict[str, Any], validation_due: bool) -> bool:
    """Change the state of a fit loop so that what was to follow the last batch follows it.

    After a checkpoint that was saved in `on_train_batch_end`, Lightning leaves out the validation that was due after
    that batch, and if it was the last one of an epoch, the epoch's end too; a second resume then loses an epoch. Here
    the batch counts as completed, and the validation as begun, which Lightning runs again from its start.

    Args:
        loop: The state, which is changed.
        validation_due: Whether a validation was to follow, or was under way.

    Returns:
        Whether the epoch has no batch left.
    """
    batches = loop["epoch_loop.batch_progress"]
    at_batch_end = batches["total"]["completed"] < batches["total"]["processed"]
    epoch = loop["epoch_progress"]["current"]
    last = batches["is_last_batch"] and epoch["processed"] < epoch["ready"]
    if at_batch_end and (validation_due or last):
        for tracker in (batches["total"], batches["current"]):
            tracker["completed"] = tracker["processed"]
        if not validation_due:
            loop["epoch_loop.state_dict"]["_batches_that_stepped"] += 1  # which Lightning counts after the validation
    if validation_due:
        validation = loop["epoch_loop.val_loop.batch_progress"]
        before = validation["total"]["completed"] - (0 if at_batch_end else validation["current"]["completed"])
        validation["total"].update(ready=before + 1, started=before + 1, processed=before, completed=before)
        validation["current"].update(ready=0, started=0, processed=0, completed=0)
    return bool(last)


def forget_begun_validation(trainer: Trainer) -> None:
    """Take back the batch that `end_of_epoch` let Lightning see as begun, once Lightning has seen it."""
    validation = trainer.fit_loop.epoch_loop.val_loop
    if validation.restarted_mid_evaluation:
        validation.batch_progress.total.reset_on_restart()


def follow_place(trainer: Trainer) -> None:
    """Give the loaders their state if Lightning has not, and count the batches as the loader counts them.

    Lightning gives loaders their state only if it makes them now; a module that asked for the length of the run, for
    its scheduler, has had them made before. With another number of processes or another batch size, the same place in
    the data is another number of batches.
    """
    loop = trainer.fit_loop
    assert loop._combined_loader is not None
    if _give_states(trainer):
        iter(cast("_DataFetcher", loop._data_fetcher))
    epoch, loaders = cast("_ProcessedTracker", loop.epoch_progress.current), loop._combined_loader.flattened
    count = getattr(loaders[0], "batches_done", None) if len(loaders) == 1 else None
    if count is None or epoch.processed >= epoch.ready:
        return
    batches = cast("_ProcessedTracker", loop.epoch_loop.batch_progress.current)
    shift = count(epoch.processed) - batches.processed
    for name in ("ready", "started", "processed", "completed"):
        setattr(batches, name, getattr(batches, name) + shift)


def follow_end(trainer: Trainer) -> None:
    """Let loaders and counters stand at the end of a training that had come to it before: Lightning leaves them."""
    loop = trainer.fit_loop
    _give_states(trainer)
    loop.update_restart_stage()
    loop.epoch_progress.total.completed = cast("_ProcessedTracker", loop.epoch_progress.total).processed


def _give_states(trainer: Trainer) -> bool:
    loop = trainer.fit_loop
    states = loop._combined_loader_states_to_load
    if states and loop._combined_loader is not None:
        loop._combined_loader._load_state_dicts(states)
        loop._combined_loader_states_to_load = []
    return bool(states)


def step_plateau_schedulers(trainer: Trainer) -> None:
    """Step the schedulers that go by a metric, where the checkpoint was saved at an epoch's end, right before it."""
    loop = trainer.fit_loop
    if loop.resumed_on_epoch_end:
        loop.epoch_progress.current.completed -= 1  # the step belongs to the epoch that has just ended
        loop.epoch_loop.update_lr_schedulers("epoch", update_plateau_schedulers=True)
        loop.epoch_progress.current.completed += 1


def loaders_again(trainer: Trainer, *, ends: bool) -> None:
    """Make the iterators anew, which may draw from the random state that was put back.

    Args:
        trainer: The trainer that resumes.
        ends: The epoch has no batch left: no loader is asked for one.
    """
    fetcher = cast("_DataFetcher", trainer.fit_loop._data_fetcher)
    epoch = cast("_ProcessedTracker", trainer.fit_loop.epoch_progress.current)
    if ends:
        fetcher.done = True
        getattr(fetcher, "batches", []).clear()  # those that were fetched ahead
    elif epoch.processed >= epoch.ready:
        iter(fetcher)
