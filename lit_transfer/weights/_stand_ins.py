"""What the inert unpickler puts in the place of globals, objects and tensors."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from lit_transfer.weights._errors import WeightsError
from lit_transfer.weights._lazy import FileTensor, Storage


@dataclass(frozen=True, eq=False, slots=True)
class Global:
    """A class or function that the pickle names; it is never imported."""

    name: str


@dataclass(eq=False, slots=True)
class StandIn:
    """A dead object of a class that was not imported, with what the pickle gave it."""

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    elements: list[Any] = field(default_factory=list)

    @property
    def attributes(self) -> dict[Any, Any]:
        """The object's `__dict__`, as far as the pickle tells it."""
        state = self.state
        if isinstance(state, tuple) and state and isinstance(state[0], dict):  # (dict, slots)
            state = state[0]
        return state if isinstance(state, dict) else {}


class InertDict(dict[Any, Any]):
    """A dictionary that may carry attributes, as a state dict carries `_metadata`."""

    def __init__(self, items: Any = ()) -> None:
        super().__init__()
        self.attributes: dict[Any, Any] = {}
        for pair in items.items() if isinstance(items, dict) else items:
            key, value = pair
            self[inert_key(key)] = value


@dataclass(frozen=True, eq=False)
class TypedStorage:
    """A storage together with the dtype that its class names."""

    storage: Storage
    dtype: torch.dtype


def inert_key(key: Any) -> Any:
    """A key that hashes in constant time: nested tuples overflow the C stack, chosen integers collide by millions."""
    if key is None or isinstance(key, str | bytes | float | Global | StandIn):
        return key
    if isinstance(key, int) and abs(key) < 2**60:
        return key
    if isinstance(key, tuple) and len(key) <= 8 and all(isinstance(part, str | int) for part in key):
        return str(key)
    return StandIn("key")


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
    dtype = getattr(torch, kind.name.rpartition(".")[2], None) if isinstance(kind, Global) else None
    if not isinstance(dtype, torch.dtype):
        raise WeightsError("a tensor declares a dtype that this torch does not have")
    return _typed_tensor(storage, offset, shape, stride, dtype)


def _typed_tensor(storage: TypedStorage, offset: Any, shape: Any, stride: Any, dtype: torch.dtype) -> FileTensor:
    if not isinstance(storage, TypedStorage):
        raise WeightsError("a tensor is built from something that is no storage")
    return FileTensor(storage.storage, dtype, tuple(shape), tuple(stride), offset)


def _of_subclass(function: Any, kind: Any, args: Any, state: Any) -> Any:
    builder = BUILDERS.get(function.name) if isinstance(function, Global) else None
    return builder(*args) if builder and isinstance(args, tuple) else StandIn("tensor subclass", (kind, args))


def _numpy_scalar(dtype: Any, data: Any = b"") -> Any:
    code = dtype.args[0] if isinstance(dtype, StandIn) and dtype.args else None
    data = data.encode("latin1") if isinstance(data, str) else data
    if isinstance(code, str) and code[1:].isdigit() and code[0] in "fiub" and isinstance(data, bytes):
        plain = np.dtype(code).newbyteorder("<" if "<" in str(dtype.state) else "=")
        if len(data) == plain.itemsize:
            return np.frombuffer(data, plain)[0].item()
    return StandIn("numpy.scalar", (dtype, data))


def _encode(text: Any, *_: Any) -> Any:
    return text.encode("latin1") if isinstance(text, str) else StandIn("_codecs.encode", (text,))


def _ordered_dict(items: Any = (), *_: Any) -> InertDict:
    return InertDict(items)


def _default_dict(factory: Any = None, *_: Any) -> InertDict:
    return InertDict()


def _instance(kind: Any = None, *args: Any) -> StandIn:
    return StandIn(kind.name if isinstance(kind, Global) else "object", args)


def _first(value: Any = None, *_: Any) -> Any:
    return value


# The only globals that give anything but a stand-in. None of them is torch's or numpy's own function.
BUILDERS: dict[str, Any] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _first,
    "torch._tensor._rebuild_from_type_v2": _of_subclass,
    "torch.Size": _first,
    "torch.nn.parameter.Parameter": _first,
    "torch.autograd.variable.Variable": _first,
    "collections.OrderedDict": _ordered_dict,
    "collections.Counter": _ordered_dict,
    "collections.defaultdict": _default_dict,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    "_codecs.encode": _encode,
    "copyreg._reconstructor": _instance,
    "copy_reg._reconstructor": _instance,
}
_HARMLESS = {"builtins.set", "__builtin__.set", "torch.device", "numpy.dtype"}


def is_harmless(name: str) -> bool:
    """Whether a global that a pickle names is one of torch's own tensor builders, or a container."""
    is_storage = name.startswith(("torch.", "torch.storage.", "torch.cuda.")) and name.endswith("Storage")
    return name in BUILDERS or name in _HARMLESS or is_storage
