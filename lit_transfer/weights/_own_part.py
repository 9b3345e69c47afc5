"""A sharded model's tensors (DTensors): each process reads its own part of the file, so that a node reads it once."""

from typing import Any

import torch
from torch import Tensor

from lit_transfer.weights._errors import WeightsError
from lit_transfer.weights._lazy import FileTensor, LazyTensor
from lit_transfer.weights._made import MadeTensor

Box = tuple[tuple[int, ...], tuple[int, ...]]


def read_own_part(tensor: LazyTensor, slot: Any) -> Tensor | None:
    """This process' part of a tensor in a file, as a DTensor like `slot`; None where it cannot be read alone.

    Of a part no checksum is compared: that would need the rest.

    Args:
        tensor: The tensor in the file, of the shape of the whole.
        slot: A DTensor.
    """
    box = _own_box(slot)
    if box is None or tensor.shape != tuple(slot.shape):
        return None
    if isinstance(tensor, FileTensor):
        local = tensor.cut(*box).read()
    elif isinstance(tensor, MadeTensor) and tensor.cut is not None:
        local = tensor.cut(*box)
    else:
        return None
    from torch.distributed.tensor import DTensor

    local = local.to(slot.dtype).contiguous()
    made: Tensor = DTensor.from_local(
        local, slot.device_mesh, slot.placements, run_check=False, shape=slot.shape, stride=slot.stride()
    )
    return made


def distribute(name: str, value: Tensor, slot: Any) -> Tensor:
    """This process' part of a value that it has whole; nothing is sent."""
    from torch.distributed.tensor import distribute_tensor

    try:
        return distribute_tensor(value.to(slot.dtype), slot.device_mesh, slot.placements, src_data_rank=None)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise WeightsError(f"{name} is sharded as {slot.placements}, which cannot be filled: {error}") from error


def _own_box(slot: Any) -> Box | None:
    """First index and size, in each dimension, of this process' part; None if it is no box, or not in the mesh."""
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    plain = all(type(placement) in (Shard, Replicate) for placement in slot.placements)
    if not plain or slot.device_mesh.get_coordinate() is None:
        return None
    sizes, offsets = compute_local_shape_and_global_offset(torch.Size(slot.shape), slot.device_mesh, slot.placements)
    return (tuple(offsets), tuple(sizes)) if tuple(slot.to_local().shape) == tuple(sizes) else None
