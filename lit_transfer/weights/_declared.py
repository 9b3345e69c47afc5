"""What is common to tensors that lie nowhere in a file as they are: known by dtype and shape alone."""

import math

import torch


class Declared:
    """The half of a FileTensor's face that dtype and shape give; children say how the values are read."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that the values have as a plain tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def location(self) -> str:
        """They are made on the CPU."""
        return "cpu"

    def place(self) -> object:
        """Each is a tensor of its own."""
        return id(self)
