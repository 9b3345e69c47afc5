"""Which of Lightning's messages a person at the command line need not read."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Advertisements, devices that nobody has, and a step of Lightning's own.
_NOISE = ("\N{ELECTRIC LIGHT BULB} Tip", "TPU available", "Loading `train_dataloader` to estimate")


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_NOISE)


def quiet_lightning() -> None:
    """Leave out advertisements, and deprecations inside Lightning, which its users cannot mend."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_news)
    # LightningCLI 2.6 calls methods that jsonargparse 4.49 deprecates.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    # Lightning 2.6 with torch 2.15 uses a deprecated class of torch.utils._pytree.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated", category=FutureWarning)


@contextmanager
def only_warnings() -> Iterator[None]:
    """Leave out every note of Lightning's, for a program that runs many Trainers."""
    quiet_lightning()
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
