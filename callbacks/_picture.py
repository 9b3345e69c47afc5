"""Pictures of a run, such as of what really trained and at which rates, put where a logger keeps pictures."""

import os
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities import rank_zero_warn

from lit_transfer.audit import StageAudit
from lit_transfer.schedule import Moment, plot_timeline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["log_figure", "log_picture", "moment_of", "thinned"]


def moment_of(trainer: Trainer, rows: Sequence[StageAudit], phase: int) -> Moment:
    """Note what trains at the trainer's step; `rows` are its audit, `phase` counts the changes so far."""
    shares = {row.stage: row.trainable / max(1, row.parameters) for row in rows}
    rates = {row.stage: max(row.lr) if row.trainable else 0.0 for row in rows if row.lr}
    trainable = sum(row.trainable for row in rows)
    return Moment(trainer.global_step, trainer.current_epoch, phase, shares, trainable, rates)


def thinned(moments: list[Moment], most: int = 2000) -> list[Moment]:
    """Leave out every other moment where there are too many to draw; the first of each phase stays."""
    if len(moments) <= most:
        return moments
    first = {moment.phase: index for index, moment in reversed(list(enumerate(moments)))}
    return [moment for index, moment in enumerate(moments) if index % 2 == 0 or first[moment.phase] == index]


def log_picture(trainer: Trainer, moments: Sequence[Moment]) -> None:
    """Give the picture of the schedule to each logger that takes one."""
    if moments:
        log_figure(trainer, "schedule", lambda: plot_timeline(moments))


def log_figure(trainer: Trainer, name: str, draw: "Callable[[], Figure]") -> None:
    """Give a picture to each logger that takes one: a PNG beside the metrics of a CSVLogger, a figure of TensorBoard.

    Other loggers get none. A file that cannot be written is a warning: the fit is over, and its checkpoints are whole.
    """
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if not _takes(logger):
            continue
        figure = draw()  # anew for each: TensorBoard closes what it is given
        if not isinstance(logger, CSVLogger):
            experiment: Any = logger.experiment  # type: ignore[attr-defined]  # a logger has it, see _takes
            experiment.add_figure(name, figure, global_step=trainer.global_step)
            continue
        picture = BytesIO()
        figure.savefig(picture, format="png", dpi=120)
        path = os.path.join(logger.log_dir, f"{name}.png")  # noqa: PTH118  # may be a URL
        try:
            with get_filesystem(path).open(path, "wb") as file:
                file.write(picture.getvalue())
        except OSError as error:
            rank_zero_warn(f"The picture of the {name} could not be written: {error}")


def _takes(logger: Logger) -> bool:
    return isinstance(logger, CSVLogger) or hasattr(getattr(logger, "experiment", None), "add_figure")
