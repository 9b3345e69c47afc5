"""Unpickling that imports nothing and calls nothing: tensors become places in the file, all else becomes stand-ins.

The pure-Python unpickler of the standard library is the base: unlike the C one its memo is a dictionary (nine bytes
cannot cost gigabytes), and each opcode can be replaced. Every opcode that would import or call is replaced here.
"""

import gc
import io
import pickle
from collections.abc import Callable
from typing import IO, Any

from lit_transfer.weights._builders import BUILDERS, array_of_state
from lit_transfer.weights._errors import WeightsError
from lit_transfer.weights._lazy import SourceFile
from lit_transfer.weights._stand_ins import Global, InertDict, Span, StandIn, inert_key

MAX_PICKLE_BYTES = 256 * 2**20
MAX_OPERATIONS = 2_000_000  # a training state of 75,000 tensors; each operation costs at most 300 bytes and 2 us
MAX_LINE_BYTES = 65_536
_LARGE = 65_536  # bytes from this size on are left in the file, where there is one
_MAX_WORDS = 200


class _Operations(dict[int, Callable[..., None]]):
    """The table of opcodes, which counts how often it is asked."""

    count = 0

    def __getitem__(self, code: int) -> Callable[..., None]:
        self.count += 1
        if self.count > MAX_OPERATIONS:
            raise WeightsError(f"the pickle has more than {MAX_OPERATIONS:,} operations: no checkpoint is like that")
        return super().__getitem__(code)


class BoundedReader:
    """Reads of a stream that never ask for more bytes than are left in it, nor for more than a pickle may have."""

    def __init__(self, stream: IO[bytes], end: int) -> None:
        self.stream = stream
        self.end = end
        self.left = min(end - stream.tell(), MAX_PICKLE_BYTES)

    def require(self, count: int) -> None:
        """Raise a WeightsError if fewer than `count` bytes are left."""
        if not 0 <= count <= self.left:
            raise WeightsError(f"the pickle asks for {count} bytes where {self.left} are left: truncated or damaged")

    def read(self, count: int) -> bytes:
        """Exactly `count` bytes, which must be there."""
        if not 0 <= count <= self.left:  # asked for each opcode: worth no call
            self.require(count)
        self.left -= count
        return self.stream.read(count)

    def skip(self, count: int) -> int:
        """Pass over `count` bytes, which must be there, and return where they begin."""
        start = self.stream.tell()
        if not 0 <= count <= self.end - start:
            raise WeightsError(f"the pickle asks for {count} bytes where {self.end - start} are left: truncated")
        self.stream.seek(start + count)
        self.left = min(self.left, self.end - start - count)
        return start

    def readinto(self, buffer: bytearray) -> int:
        """Fill `buffer`, which must be no longer than what is left."""
        buffer[:] = self.read(len(buffer))
        return len(buffer)

    def readline(self) -> bytes:
        """One line of at most MAX_LINE_BYTES."""
        line = self.stream.readline(min(MAX_LINE_BYTES, self.left))
        self.left -= len(line)
        if not line.endswith(b"\n"):
            raise WeightsError("the pickle holds a line that does not end: truncated or damaged")
        return line


class InertUnpickler(pickle._Unpickler):
    """An unpickler whose every global is dead.

    `globals` collects the names that a full unpickler would import, each with the first call of it in words ("" if it
    is not called). If `file` is given, large bytes stay in it: the pickle itself is the file.
    """

    # What the base class sets in load(), and has no annotations for.
    stack: list[Any]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    pop_mark: Callable[[], list[Any]]
    _unframer: Any

    def __init__(
        self, reader: BoundedReader, load_persistent: Callable[[Any], Any], file: SourceFile | None = None
    ) -> None:
        # latin1: pickles of Python 2 hold their names as bytes, and raw values must survive.
        super().__init__(reader, encoding="latin1")
        self.reader = reader
        self.file = file
        self.load_persistent = load_persistent
        self.globals: dict[str, str] = {}
        self.dispatch = _Operations({**pickle._Unpickler.dispatch, **_OPERATIONS})  # type: ignore[misc]  # one counter for each run

    def find_class(self, module: str, name: str) -> Any:
        self.globals.setdefault(f"{module}.{name}", "")
        return Global(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        return self.load_persistent(pid)

    def get_extension(self, code: int) -> None:
        raise WeightsError(f"the pickle uses the copyreg extension {code}, which no checkpoint needs")

    def _instantiate(self, klass: Any, args: Any) -> None:
        self._note_call(klass, tuple(args))
        self.append(_call(klass, tuple(args)))

    def load_reduce(self) -> None:
        self._note_call(self.stack[-2], self.stack[-1])
        self.load_newobj()

    def load_newobj(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = _call(self.stack[-1], args)

    def load_newobj_ex(self) -> None:
        self.stack.pop()
        self.load_newobj()

    def _note_call(self, function: Any, args: Any) -> None:
        if isinstance(function, Global) and function.name not in BUILDERS and not self.globals.get(function.name):
            self.globals[function.name] = f"{function.name}({_in_words(args)})"

    def load_build(self) -> None:
        state = self.stack.pop()
        instance = self.stack[-1]
        if isinstance(instance, StandIn):
            instance.state = array_of_state(state) if instance.name == "numpy.ndarray" else state
        elif isinstance(instance, InertDict) and isinstance(state, dict):
            instance.attributes.update(state)

    def load_append(self) -> None:
        self._extend([self.stack.pop()])

    def load_appends(self) -> None:
        self._extend(self.pop_mark())

    def load_setitem(self) -> None:
        value = self.stack.pop()
        self._set_items([self.stack.pop(), value])

    def load_setitems(self) -> None:
        self._set_items(self.pop_mark())

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set_items(items)

    def load_empty_set(self) -> None:
        self.append(StandIn("builtins.set"))

    def load_frozenset(self) -> None:
        self.append(StandIn("builtins.frozenset", elements=self.pop_mark()))

    def load_bytes4(self) -> None:
        self.append(self._bytes(4))

    def load_bytes8(self) -> None:
        self.append(self._bytes(8))

    def load_string(self) -> None:
        data = self._bytes(4)
        self.append(data.decode("latin1") if isinstance(data, bytes) else data)

    def _bytes(self, width: int) -> bytes | Span:
        """The bytes behind their length, or their place; a frame of protocol 4 never holds large ones."""
        count = int.from_bytes(self.read(width), "little")
        if self.file is None or count < _LARGE or self._unframer.current_frame is not None:
            return self.read(count)  # a bytearray is not allocated before the bytes are there
        return Span(self.file, self.reader.skip(count), count)

    def _extend(self, items: list[Any]) -> None:
        container = self.stack[-1]
        if isinstance(container, StandIn):
            container.elements.extend(items)
        elif isinstance(container, list):
            container.extend(items)
        else:
            raise WeightsError(f"the pickle appends to a {type(container).__name__}")

    def _set_items(self, items: list[Any]) -> None:
        container = self.stack[-1]
        mapping = container.items if isinstance(container, StandIn) else container
        if not isinstance(mapping, dict) or len(items) % 2:
            raise WeightsError(f"the pickle sets items of a {type(container).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            mapping[inert_key(key)] = value


_METHODS = {
    pickle.REDUCE: InertUnpickler.load_reduce,
    pickle.NEWOBJ: InertUnpickler.load_newobj,
    pickle.NEWOBJ_EX: InertUnpickler.load_newobj_ex,
    pickle.BUILD: InertUnpickler.load_build,
    pickle.APPEND: InertUnpickler.load_append,
    pickle.APPENDS: InertUnpickler.load_appends,
    pickle.ADDITEMS: InertUnpickler.load_appends,
    pickle.SETITEM: InertUnpickler.load_setitem,
    pickle.SETITEMS: InertUnpickler.load_setitems,
    pickle.DICT: InertUnpickler.load_dict,
    pickle.EMPTY_SET: InertUnpickler.load_empty_set,
    pickle.FROZENSET: InertUnpickler.load_frozenset,
    pickle.BINBYTES: InertUnpickler.load_bytes4,
    pickle.BINBYTES8: InertUnpickler.load_bytes8,
    pickle.BYTEARRAY8: InertUnpickler.load_bytes8,
    pickle.BINSTRING: InertUnpickler.load_string,
}
_OPERATIONS: dict[int, Callable[..., None]] = {code[0]: method for code, method in _METHODS.items()}


def unpickle(
    stream: IO[bytes], end: int, load_persistent: Callable[[Any], Any], file: SourceFile | None = None
) -> tuple[Any, dict[str, str]]:
    """One pickle from where `stream` stands, reading no byte at or after `end`.

    Args:
        stream: The opened file.
        end: Where the pickle must have ended.
        load_persistent: Gives what a persistent id stands for.
        file: The file that `stream` reads, if large bytes are to be left in it.

    Returns:
        The content, and the names of the globals that a full unpickler would have imported, with their first calls.

    Raises:
        WeightsError: The pickle is damaged, hostile or too large.
    """
    unpickler = InertUnpickler(BoundedReader(stream, end), load_persistent, file)
    collecting = gc.isenabled()
    gc.disable()  # millions of containers that all live on: collecting between them triples the time
    try:
        return unpickler.load(), unpickler.globals
    except WeightsError:
        raise
    except Exception as error:  # whatever a damaged stream makes the unpickler raise: the caller learns one thing
        raise WeightsError(f"the pickle inside is damaged ({type(error).__name__}: {error})") from error
    finally:
        if collecting:
            gc.enable()


def unpickle_bytes(data: bytes, load_persistent: Callable[[Any], Any]) -> tuple[Any, dict[str, str]]:
    """As `unpickle`, from memory."""
    return unpickle(io.BytesIO(data), len(data), load_persistent)


def _call(function: Any, args: Any) -> Any:
    if not isinstance(function, Global):
        return StandIn("called value")
    if not isinstance(args, tuple):
        raise WeightsError(f"the pickle calls {function.name} with a {type(args).__name__} for arguments")
    builder = BUILDERS.get(function.name)
    return builder(*args) if builder else StandIn(function.name, args)


def _in_words(args: Any) -> str:
    """The plain arguments of a call, cut short: what a hostile file would have run."""
    if not isinstance(args, tuple):
        return "..."
    shown = (repr(a[:_MAX_WORDS] if isinstance(a, str | bytes) else a) if _is_plain(a) else "..." for a in args[:4])
    text = ", ".join([*shown, *(["..."] if len(args) > 4 else [])])
    return text if len(text) <= _MAX_WORDS else f"{text[:_MAX_WORDS]}..."


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | bytes | float) or (isinstance(value, int) and abs(value) < 2**60)
