"""Checksums of what is about to be read, compared before the first value of a model changes."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from lit_transfer.weights._errors import named
from lit_transfer.weights._lazy import FileTensor, LazyTensor, Storage, is_mostly_wanted

_MAX_THREADS = 4  # a checksum is computed at a third of the speed at which a cached file is read


def verify(tensors: Iterable[tuple[str, LazyTensor]]) -> None:
    """Compare the storages of which at least half is wanted with their checksums.

    Args:
        tensors: Names in the file, and what is to be read.

    Raises:
        WeightsError: The bytes of a tensor are not those that were written; it is named.
    """
    names: dict[Storage, str] = {}
    wanted: dict[Storage, int] = {}
    for name, tensor in tensors:
        if isinstance(tensor, FileTensor) and tensor.storage.verify is not None:
            names.setdefault(tensor.storage, name)
            wanted[tensor.storage] = wanted.get(tensor.storage, 0) + tensor.nbytes
    chosen = [storage for storage in names if is_mostly_wanted(storage, wanted[storage])]
    chosen.sort(key=lambda storage: storage.nbytes)
    threads = min(_MAX_THREADS, os.cpu_count() or 1, len(chosen))
    if threads:
        with ThreadPoolExecutor(threads) as pool:
            shares = [[(names[storage], storage) for storage in chosen[i::threads]] for i in range(threads)]
            for _ in pool.map(_verify_all, shares):
                pass


def _verify_all(share: list[tuple[str, Storage]]) -> None:
    with ExitStack() as stack:
        handles = {file: stack.enter_context(file.open()) for file in {storage.file for _, storage in share}}
        for name, storage in share:
            with named(name):
                if storage.verify is not None:
                    storage.verify(handles[storage.file])
