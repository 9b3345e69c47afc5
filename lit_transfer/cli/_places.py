"""The files that a command is to write, refused before its work instead of after it."""

from pathlib import Path

from matplotlib.backend_bases import FigureCanvasBase


def check_places(*, output: str | Path | None = None, plot: str | None = None) -> None:
    """Refuse a file that could not be written.

    Args:
        output: What `--output` says.
        plot: What `--plot` says, a picture.

    Raises:
        FileNotFoundError: There is no folder for it.
        ValueError: Pictures of that type cannot be drawn.
    """
    for option, place in (("--output", output), ("--plot", plot)):
        if place is not None and not Path(place).absolute().parent.is_dir():
            raise FileNotFoundError(f"{option} {place}: there is no folder {str(Path(place).parent)!r}; make it first.")
    known = FigureCanvasBase.get_supported_filetypes()
    if plot is not None and (suffix := Path(plot).suffix.removeprefix(".")) not in known:
        raise ValueError(f"--plot {plot}: pictures of type {suffix!r} cannot be drawn; expected {', '.join(known)}.")
