"""Builders of what a pickle calls: tensors, storages, arrays and containers. None is torch's or numpy's function.

Source: torch/_utils.py (`_rebuild_*`), torch/_tensor.py (`_reduce_ex_internal`), numpy's `ndarray.__reduce_ex__`.
"""

import math
from functools import partial
from typing import IO, Any

import numpy as np
import torch

from lit_transfer.weights._errors import WeightsError
from lit_transfer.weights._lazy import FileTensor, Storage, strides
from lit_transfer.weights._pickled import NUMBERS, ArrayTensor, UnreadTensor, torch_dtype
from lit_transfer.weights._stand_ins import Global, InertDict, Span, StandIn, TypedStorage

_PLAIN = "save {{name: tensor.{}() for name, tensor in state_dict.items()}} where it was made"

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
    "_UntypedStorage": torch.uint8,
    "QInt8Storage": torch.int8,
    "QUInt8Storage": torch.uint8,
    "QInt32Storage": torch.int32,
}


def storage_dtype(kind: Any) -> torch.dtype:
    """The dtype of a storage class, or of a tensor class of the first releases, from its name."""
    name = kind.name.rpartition(".")[2] if isinstance(kind, Global) else str(kind)
    name = name.removesuffix("Tensor") + "Storage" if name.endswith("Tensor") else name
    if name not in _STORAGES:
        raise WeightsError(f"the file holds a storage of the unknown kind {name!r}")
    return _STORAGES[name]


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> FileTensor:
    return _typed_tensor(storage, offset, shape, stride, storage.dtype)


def _tensor_v3(storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any, kind: Any, *_: Any) -> Any:
    return _typed_tensor(storage, offset, shape, stride, _dtype(kind))


def _dtype(kind: Any) -> torch.dtype:
    dtype = getattr(torch, kind.name.rpartition(".")[2], None) if isinstance(kind, Global) else None
    if not isinstance(dtype, torch.dtype):
        raise WeightsError("a tensor declares a dtype that this torch does not have")
    return dtype


def _typed_tensor(storage: TypedStorage, offset: Any, shape: Any, stride: Any, dtype: torch.dtype) -> FileTensor:
    if not isinstance(storage, TypedStorage):
        raise WeightsError("a tensor is built from something that is no storage")
    return FileTensor(storage.storage, dtype, tuple(shape), tuple(stride), offset)


def _of_subclass(function: Any, kind: Any, args: Any, state: Any) -> Any:
    builder = BUILDERS.get(function.name) if isinstance(function, Global) else None
    made = builder(*args) if builder and isinstance(args, tuple) else StandIn("tensor subclass", (kind, args))
    for part in state if isinstance(state, tuple) else (state,):  # (__dict__, slots)
        local = part.get("_local_tensor") if isinstance(part, dict) else None
        if isinstance(made, UnreadTensor) and isinstance(local, FileTensor) and local.shape == made.shape:
            return local  # a DTensor of which this file has all
    return made


def _quantised(storage: Any, offset: Any, shape: Any, *_: Any) -> UnreadTensor:
    dtype = storage.dtype if isinstance(storage, TypedStorage) else torch.uint8
    return _unread(f"it is quantised: {_PLAIN.format('dequantize')}", dtype, shape)


def _sparse(layout: Any, data: Any, *_: Any) -> UnreadTensor:
    parts = data if isinstance(data, tuple) else ()
    values = [part for part in parts if isinstance(part, FileTensor)]
    shape = next((part for part in parts if isinstance(part, tuple)), None)
    kind = layout.args[0] if isinstance(layout, StandIn) and layout.args else "sparse"
    dtype = values[-1].dtype if values else torch.float32
    return _unread(f"it is a sparse tensor ({kind}): {_PLAIN.format('to_dense')}", dtype, shape)


def _nested(buffer: Any, *_: Any) -> UnreadTensor:
    dtype = buffer.dtype if isinstance(buffer, FileTensor) else torch.float32
    return _unread("it is a nested tensor, of several shapes: no parameter is like that", dtype, ())


def _on_meta(dtype: Any, shape: Any, *_: Any) -> UnreadTensor:
    return _unread("it was saved from the meta device, without values", _dtype(dtype), shape)


def _wrapper(kind: Any, dtype: Any, shape: Any, *_: Any) -> UnreadTensor:
    name = kind.name if isinstance(kind, Global) else "an unknown class"
    if name.endswith(".DTensor"):
        how = "it is one process' part of a sharded tensor (DTensor): save the whole, with "
        how += "torch.distributed.checkpoint.state_dict.get_model_state_dict and full_state_dict=True"
    else:
        how = f"it is a tensor of class {name}: save it as a plain tensor"
    return _unread(how, _dtype(dtype), shape)


def _unread(why: str, dtype: torch.dtype, shape: Any) -> UnreadTensor:
    if not isinstance(shape, tuple) or not all(type(size) is int and 0 <= size < 2**62 for size in shape):
        raise WeightsError(f"a tensor declares the shape {str(shape)[:80]}: not a tensor")
    return UnreadTensor(why, dtype, shape)


def array_of_state(state: Any) -> Any:
    """What numpy's pickle says of an array (version, shape, dtype, column-major, bytes), as a tensor if it is one."""
    if not isinstance(state, tuple) or len(state) != 5:
        return state
    _, shape, dtype, column_major, data = state
    return _array(data, dtype, shape, "F" if column_major is True else "C") or state


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any, *_: Any) -> Any:
    return _array(data, dtype, shape, order) or StandIn("numpy.ndarray", (data, dtype, shape, order))


def _array(data: Any, dtype: Any, shape: Any, order: Any) -> ArrayTensor | FileTensor | None:
    """An array over the bytes of the pickle; None if its numbers are of no plain kind."""
    kind = _numpy_dtype(dtype)
    data = data.encode("latin1") if isinstance(data, str) else data
    if kind is None or not isinstance(data, bytes | Span):
        return None
    count = data.nbytes if isinstance(data, Span) else len(data)
    sizes = tuple(shape) if isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape) else None
    if sizes is None or len(sizes) > 32 or math.prod(sizes) * kind.itemsize != count:
        raise WeightsError(f"an array declares the shape {str(shape)[:80]} and has {count} bytes: damaged")
    if isinstance(data, Span):
        return _array_in_file(data, kind, sizes, columns=order == "F")
    return ArrayTensor.of(np.frombuffer(data, kind).reshape(sizes, order="F" if order == "F" else "C"))


def _array_in_file(data: Span, kind: "np.dtype[Any]", sizes: tuple[int, ...], *, columns: bool) -> FileTensor | None:
    dtype = torch_dtype(kind)
    storage = Storage(data.file, data.nbytes, partial(_fixed, data.start), swapped=not kind.isnative)
    return None if dtype is None else FileTensor(storage, dtype, sizes, strides(sizes, columns=columns))


def _fixed(position: int, handle: IO[bytes]) -> int:
    return position


def _numpy_dtype(dtype: Any) -> "np.dtype[Any] | None":
    """The dtype of plain numbers that a stand-in for numpy.dtype means: its code, and the byte order in its state."""
    code = dtype.args[0] if isinstance(dtype, StandIn) and dtype.args else None
    if not isinstance(code, str) or code not in NUMBERS:
        return None
    state = dtype.state if isinstance(dtype.state, tuple) else ()
    order = state[1] if len(state) > 1 else "="
    return np.dtype((">" if order == ">" else "<" if order == "<" else "=") + code)


def _numpy_scalar(dtype: Any, data: Any = b"") -> Any:
    kind = _numpy_dtype(dtype)
    data = data.encode("latin1") if isinstance(data, str) else data
    if kind is not None and isinstance(data, bytes) and len(data) == kind.itemsize:
        return np.frombuffer(data, kind)[0].item()
    return StandIn("numpy.scalar", (dtype, data))


def _encode(text: Any, *_: Any) -> Any:
    return text.encode("latin1") if isinstance(text, str) else StandIn("_codecs.encode", (text,))


def _empty_bytes(*args: Any) -> Any:
    """What Python 3 writes for b"" in the protocols of Python 2."""
    return StandIn("builtins.bytes", args) if args else b""


def _ordered_dict(items: Any = (), *_: Any) -> InertDict:
    return InertDict(items)


def _default_dict(factory: Any = None, *_: Any) -> InertDict:
    return InertDict()


def _instance(kind: Any = None, *args: Any) -> StandIn:
    return StandIn(kind.name if isinstance(kind, Global) else "object", args)


def _new_object(kind: Any = None, *args: Any) -> Any:
    """What `copyreg.__newobj__` makes in the protocols of Python 2."""
    builder = BUILDERS.get(kind.name) if isinstance(kind, Global) else None
    return builder(*args) if builder else _instance(kind, *args)


def _storage_in_bytes(*_: Any) -> Any:
    raise WeightsError(
        "its tensors were pickled by pickle.dump: load it with pickle where it was written, and save it with torch.save"
    )


def _first(value: Any = None, *_: Any) -> Any:
    return value


# The only globals that give anything but a stand-in.
BUILDERS: dict[str, Any] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _first,
    "torch._utils._rebuild_device_tensor_from_numpy": _first,
    "torch._utils._rebuild_xla_tensor": _first,
    "torch._utils._rebuild_qtensor": _quantised,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_nested_tensor": _nested,
    "torch._utils._rebuild_meta_tensor_no_storage": _on_meta,
    "torch._utils._rebuild_wrapper_subclass": _wrapper,
    "torch._tensor._rebuild_from_type_v2": _of_subclass,
    "torch.storage._load_from_bytes": _storage_in_bytes,
    "torch.Size": _first,
    "torch.nn.parameter.Parameter": _first,
    "torch.autograd.variable.Variable": _first,
    "collections.OrderedDict": _ordered_dict,
    "collections.Counter": _ordered_dict,
    "collections.defaultdict": _default_dict,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    "numpy.core.multiarray._reconstruct": _instance,
    "numpy._core.multiarray._reconstruct": _instance,
    "numpy.core.numeric._frombuffer": _from_buffer,
    "numpy._core.numeric._frombuffer": _from_buffer,
    "_codecs.encode": _encode,
    "builtins.bytes": _empty_bytes,
    "__builtin__.bytes": _empty_bytes,
    "copyreg._reconstructor": _instance,
    "copyreg.__newobj__": _new_object,
    "copy_reg.__newobj__": _new_object,
    "copy_reg._reconstructor": _instance,
}
_HARMLESS = {
    "builtins.set",
    "__builtin__.set",
    "torch.device",
    "torch.serialization._get_layout",
    "numpy.dtype",
    "numpy.ndarray",
}


def is_harmless(name: str) -> bool:
    """Whether a global that a pickle names is one of torch's own tensor builders, or a container."""
    is_storage = name.startswith(("torch.", "torch.storage.", "torch.cuda.")) and name.endswith("Storage")
    return name in BUILDERS or name in _HARMLESS or is_storage
