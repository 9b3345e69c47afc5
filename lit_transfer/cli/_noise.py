"""Which of Lightning's messages and files a person at the command line has no use for."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Advertisements, devices that nobody has, and a step of Lightning's own.
_NOISE = ("\N{ELECTRIC LIGHT BULB} Tip", "TPU available", "Loading `train_dataloader` to estimate")
# For a Trainer that leaves nothing behind of what `fit` would.
LEAVES_NOTHING: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


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
