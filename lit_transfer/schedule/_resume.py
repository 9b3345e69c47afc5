"""What a checkpoint says of its schedule to a run that has none: without it everything would train, in silence."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["STATE_KEY", "refuse_without_schedule"]

STATE_KEY = "FinetuningSchedule"  # under which the callback keeps its state in a checkpoint


def refuse_without_schedule(saved: Iterable[str], present: Iterable[str]) -> None:
    """Raise where the run that wrote a checkpoint had a schedule, and the one that resumes it has none.

    A callback that was taken away cannot speak for itself: whoever is there and reads the checkpoint calls this.

    Args:
        saved: Keys of the checkpoint's callbacks.
        present: State keys of the callbacks of the run that resumes it.

    Raises:
        ValueError: With what to add.
    """
    if STATE_KEY in saved and STATE_KEY not in present:
        raise ValueError(
            "The checkpoint is of a run with a FinetuningSchedule, and this run has none: all that was frozen would "
            "train from here on. Add the callback with its phases, which may have changed; "
            "FinetuningSchedule('full') trains everything."
        )
