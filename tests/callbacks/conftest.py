"""Puts this folder on the path, and lets pass what Lightning itself warns of in every fit.

Tests and the scripts that they start in processes share `foreign_module`.
"""

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "restore"))  # kills

_UPSTREAM = (
    "ignore:.*LeafSpec:FutureWarning",  # Lightning 2.6 on torch 2.15
    "ignore:.*does not have many workers",
    "ignore:.*tensorboardX",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for text in _UPSTREAM:
                item.add_marker(pytest.mark.filterwarnings(text))


@pytest.fixture
def told() -> Iterator[Callable[[], list[str]]]:
    """What FeatureCaching has said so far."""
    said: list[str] = []
    handler, logger = logging.Handler(), logging.getLogger("lightning.pytorch")
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]  # one method of it
    logger.addHandler(handler)
    yield lambda: [text for text in said if text.startswith("FeatureCaching")]
    logger.removeHandler(handler)


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., Any]:
    """Fit a fresh module of `cached_module`, on the same random numbers each time; images are counted from here on."""
    import torch
    from cached_module import READS, Module, train_loader, trainer, val_loader

    READS.value.zero_()

    def run(*callbacks: Any, train: Any = None, val: Any = None, module: Any = None, **options: Any) -> Module:
        module = module or Module()
        arguments = {name: options.pop(name) for name in ("ckpt_path",) if name in options}
        made = trainer(*callbacks, folder=tmp_path, **options)
        torch.manual_seed(7)
        made.fit(module, train_loader() if train is None else train, val_loader() if val is None else val, **arguments)
        return module

    return run


@pytest.fixture
def caching(tmp_path: Path) -> Callable[..., Any]:
    """Make a FeatureCaching of `cached_module`'s backbone that is exact, unless told otherwise."""
    from lit_transfer.callbacks import FeatureCaching

    return lambda **options: FeatureCaching("encoder", **{"fast": False, "folder": tmp_path / "cache"} | options)
