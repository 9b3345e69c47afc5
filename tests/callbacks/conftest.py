"""Puts this folder on the path, and lets pass what Lightning itself warns of in every fit.

Tests and the scripts that they start in processes share `foreign_module`.
"""

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

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
