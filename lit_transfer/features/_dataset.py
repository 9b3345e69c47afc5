"""Samples with a stored feature in the place of the image, and the text form of what else is in a sample."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from torch.utils.data import Dataset

from lit_transfer.features._boundary import Outline
from lit_transfer.features._store import Entry

__all__ = ["CachedSamples", "find_image", "split_sample"]

_AS_JSON = (type(None), bool, int, float, str)


class CachedSamples(Dataset[Any]):
    """As long as the dataset it stands for, with the same keys and samples, but for the image in each.

    Attributes that it lacks are those of the dataset (`classes`, `targets`, ...).

    Attributes:
        dataset: The dataset it stands for, which is not asked for samples.
        entry: Where the features are.
    """

    def __init__(self, entry: Entry, dataset: Dataset[Any], structure: TreeSpec, image: int, outline: Outline) -> None:
        """Remember how a sample is put together.

        Args:
            entry: Where the features are: those of all samples in order, then, if it holds several views, those of the
                second view, and so on.
            dataset: The dataset whose samples they are.
            structure: How its samples are nested.
            image: Which leaf of a sample is the image.
            outline: How features are carried.
        """
        self.entry, self.dataset = entry, dataset
        self._structure, self._image = structure, image
        self._dtype, self._shape = outline.dtype, outline.carried
        self._length = len(dataset)  # type: ignore[arg-type]  # torch does not type the length of a Dataset
        self._views = entry.layout.rows // max(1, self._length)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, key: int | tuple[int, int]) -> Any:
        """Give a sample for an index, or for a pair of index and epoch as a sampler of this library gives it.

        Of several views, one is drawn from torch's generator; with an epoch they take turns, in another order for
        each sample.
        """
        return self.row(self._row_of(key))

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> list[Any]:
        """Give the samples of a batch, as a DataLoader asks for them: all features in one read."""
        return self._samples([self._row_of(key) for key in keys])

    def row(self, row: int) -> Any:
        """Give the sample of one row of the entry."""
        return self._samples([row])[0]

    def _row_of(self, key: int | tuple[int, int]) -> int:
        index, epoch = key if isinstance(key, tuple) else (key, None)
        index = range(self._length)[index]
        view = 0
        if self._views > 1:
            view = int(torch.randint(self._views, ())) if epoch is None else (index * 7919 + epoch) % self._views
        return view * self._length + index

    def _samples(self, rows: Sequence[int]) -> list[Any]:
        features = self.entry.features(rows).to(self._dtype).view(len(rows), *self._shape)
        found = []
        for row, feature in zip(rows, features.unbind(), strict=True):
            leaves = [_decoded(leaf) for leaf in self.entry.rest(row)]
            leaves.insert(self._image, feature)
            found.append(tree_unflatten(leaves, self._structure))
        return found

    def __getattr__(self, name: str) -> Any:
        # Nothing of the dataset's own that others look for by such a name, nor anything before __init__ or in a copy.
        if name.startswith("_") or "dataset" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.dataset, name)


def split_sample(sample: Any, structure: TreeSpec, image: int) -> str:
    """Give what is in a sample besides the image, as the JSON list that the store keeps.

    Raises:
        TypeError: Something in it cannot be kept exactly.
        ValueError: The sample is nested otherwise than the first one was.
    """
    leaves, own = tree_flatten(sample)
    if own != structure:
        raise ValueError(f"samples differ in how they are nested: expected {structure}, got {own}.")
    return json.dumps([_encoded(leaf) for number, leaf in enumerate(leaves) if number != image])


def find_image(samples: Sequence[Any], batch: Tensor) -> tuple[TreeSpec, int] | None:
    """Find the leaf of the samples that a batch of images was made of.

    Args:
        samples: The samples of the batch, in order.
        batch: What the backbone took, (len(samples), ...).

    Returns:
        How a sample is nested, and the number of the leaf; None if no leaf holds the values of the batch.
    """
    flat = [tree_flatten(sample) for sample in samples]
    structure = flat[0][1]
    if len(batch) != len(samples) or any(own != structure for _, own in flat):
        return None
    for number in range(structure.num_leaves):
        if all(_is_same(leaves[number], row) for (leaves, _), row in zip(flat, batch, strict=True)):
            return structure, number
    return None


def _is_same(leaf: Any, row: Tensor) -> bool:
    if not isinstance(leaf, Tensor | np.ndarray) or tuple(leaf.shape) != tuple(row.shape):
        return False
    given = torch.as_tensor(leaf)
    # Lightning's precision plugins cast what is floating point.
    return torch.equal(given.to(row.device, row.dtype) if given.is_floating_point() else given.to(row.device), row)


def _encoded(leaf: Any) -> Any:
    if type(leaf) in _AS_JSON:
        return leaf
    if type(leaf) is Tensor and leaf.layout == torch.strided and not leaf.is_quantized:
        plain = leaf.detach().cpu().contiguous()
        data = plain.flatten().view(torch.uint8).numpy().tobytes() if plain.numel() else b""
        return {"tensor": str(plain.dtype).removeprefix("torch."), "shape": list(plain.shape), "data": _text(data)}
    if isinstance(leaf, np.ndarray | np.generic) and not leaf.dtype.hasobject and type(leaf) is not np.memmap:
        kind = "array" if isinstance(leaf, np.ndarray) else "scalar"
        return {kind: leaf.dtype.str, "shape": list(leaf.shape), "data": _text(leaf.tobytes())}
    raise TypeError(
        f"a sample holds a {type(leaf).__name__} besides the image: expected numbers, text, None, plain tensors or "
        "arrays, in tuples, lists and dictionaries, which can be kept exactly as they are."
    )


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decoded(leaf: Any) -> Any:
    if not isinstance(leaf, dict):
        return leaf
    data = bytearray(base64.b64decode(leaf["data"]))
    if "tensor" in leaf:
        dtype: torch.dtype = getattr(torch, leaf["tensor"])
        if not data:
            return torch.empty(leaf["shape"], dtype=dtype)
        return torch.frombuffer(data, dtype=torch.uint8).clone().view(dtype).view(leaf["shape"])
    found = np.frombuffer(data, leaf.get("array") or leaf["scalar"]).reshape(leaf["shape"])
    return found if "array" in leaf else found[()]
