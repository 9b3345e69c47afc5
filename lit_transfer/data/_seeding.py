"""Seeds that depend on nothing but what they are made from: the same on every machine, process and Python version."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def stable_hash(*parts: object) -> int:
    """Give 63 bits that depend on the text of the parts only; Python's own `hash` differs from process to process."""
    text = "\x1f".join(map(str, parts))
    digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@contextmanager
def seeded(*parts: object) -> Iterator[None]:
    """Seed the generators of torch (CPU), Python and numpy from the parts, and put them back as they were.

    Generators of other devices are left alone: `torch.manual_seed` would seed those too, and loading an image in the
    training process would then restart the dropout masks on the GPU.
    """
    seed = stable_hash(*parts)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002 (transforms draw from it)
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (as above)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        random.setstate(before[1])
        np.random.set_state(before[2])  # noqa: NPY002 (as above)
