"""Read what a PyTorch pickle says without executing it.

The few dozen instructions that `torch.save` writes are interpreted over plain data. Nothing is imported or called: a
tensor becomes a claim about bytes in the archive, so that every claim can be checked against the archive's real sizes,
and every other object that the pickle asks for becomes an `Opaque`, its name alone.
"""

import math
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ntt_jax.errors import InputError
from ntt_jax.files import reason
from ntt_jax.safetensors_file import MAX_RANK, sensible

MAX_OPERATIONS = 1_000_000
"""A tensor takes about 35: a checkpoint of the largest model with its optimiser's state takes 100,000."""
MAX_STACK = 1_000_000
MAX_DEPTH = 1000

STORAGE_TYPES = {
    "FloatStorage": ("float32", 4),
    "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2),
    "DoubleStorage": ("float64", 8),
    "LongStorage": ("int64", 8),
    "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2),
    "CharStorage": ("int8", 1),
    "ByteStorage": ("uint8", 1),
    "BoolStorage": ("bool", 1),
}
_PLAIN_TENSORS = ("torch Tensor", "torch._tensor Tensor", "torch.nn.parameter Parameter")


@dataclass(frozen=True, eq=False)
class Opaque:
    """An object that is no tensor and never built. name: what the pickle asks for, "argparse.Namespace"."""

    name: str


@dataclass(frozen=True)
class Global:
    """Something that the pickle names, not yet called."""

    name: str  # "module attribute"

    def opaque(self) -> Opaque:
        """What becomes of it when it is called or found as a value."""
        return Opaque(self.name.replace(" ", "."))


@dataclass(frozen=True)
class Storage:
    """A record that holds numbers. key: its name in the archive. numel: how many numbers it must hold."""

    dtype: str
    itemsize: int
    key: str
    numel: int


@dataclass(frozen=True)
class TensorClaim:
    """A tensor as the pickle describes it: a strided view into a storage.

    lazy: what torch would still do to its numbers when it loads it ("neg", "conj"), "" for nothing.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    lazy: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor as an array of its own."""
        return math.prod(self.shape) * self.storage.itemsize

    @property
    def last(self) -> int:
        """Position in the storage of the number that lies furthest in it; -1 where the tensor is empty."""
        if 0 in self.shape:
            return -1
        return self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))


def scan(data: bytes, where: str) -> Any:
    """The object a pickle describes: dicts, lists, tuples, numbers, strings, `TensorClaim`s and `Opaque`s.

    Raises:
        InputError: the pickle is damaged, larger than any checkpoint's, or of instructions that torch never writes.
    """
    scanner = _Scanner(data, where)
    try:
        return scanner.run()
    except InputError:
        raise
    except Exception as e:  # whatever the stack below raises on damaged input means the same
        words = reason(e) if type(e) is ValueError else type(e).__name__
        raise InputError(f"{where}: damaged pickle ({words})") from None


class _Scanner:
    def __init__(self, data: bytes, where: str):
        self.data, self.where, self.position = data, where, 0
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def run(self) -> Any:
        data, stop, table = self.data, pickle.STOP[0], _TABLE
        for _ in range(MAX_OPERATIONS):
            code = data[self.position]
            self.position += 1
            if code == stop:
                (root,) = self.stack
                return root
            operation = table[code]
            if operation is None:
                name = _NAMES.get(code, f"{code:#04x}")
                raise InputError(f"{self.where}: pickle instruction {name}, which torch.save never writes")
            operation(self)
            if len(self.stack) > MAX_STACK or len(self.marks) > MAX_DEPTH:
                raise InputError(f"{self.where}: damaged pickle (deeper than any checkpoint's)")
        raise InputError(f"{self.where}: its pickle has more than {MAX_OPERATIONS:,} instructions")

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.data):
            raise ValueError("cut off")
        out = self.data[self.position : end]
        self.position = end
        return out

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def line(self) -> str:
        end = self.data.index(b"\n", self.position, self.position + 1000)
        out = self.data[self.position : end].decode("utf-8")
        self.position = end + 1
        return out

    def pop(self, count: int) -> list[Any]:
        if count > len(self.stack) - (self.marks[-1] if self.marks else 0):
            raise ValueError("stack underflow")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def pop_to_mark(self) -> list[Any]:
        height = self.marks.pop()
        items = self.stack[height:]
        del self.stack[height:]
        return items

    def named(self, module: str, attribute: str) -> None:
        self.stack.append(Global(f"{module} {attribute}"))

    def stack_global(self) -> None:
        module, attribute = self.pop(2)
        if type(module) is not str or type(attribute) is not str or len(module) + len(attribute) > 1000:
            raise ValueError("not a name")
        self.named(module, attribute)

    def call(self, arguments: int = 1) -> None:
        function, given, *_ = self.pop(1 + arguments)
        if isinstance(function, Opaque):
            self.stack.append(function)
        elif not isinstance(function, Global) or not isinstance(given, tuple):
            raise ValueError("a call of something that is not a function")
        else:
            self.stack.append(_called(function, given))

    def persistent(self) -> None:
        kind, storage_type, key, _, numel = self.pop(1)[0]
        if kind != "storage" or not isinstance(storage_type, Global) or type(key) is not str:
            raise ValueError("not a storage")
        if type(numel) is not int or not 0 <= numel < 2**48:  # longer ones cannot even be printed
            raise ValueError("not a storage")
        module, _, attribute = storage_type.name.partition(" ")
        if module != "torch" or attribute not in STORAGE_TYPES:
            self.stack.append(storage_type.opaque())
            return
        storage = Storage(*STORAGE_TYPES[attribute], key, numel)
        if self.storages.setdefault(key, storage) != storage:
            raise InputError(f"{self.where}: the pickle describes the storage {key!r:.80} in two ways")
        self.stack.append(storage)

    def set_items(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if len(pairs) % 2 or not isinstance(target, dict | Opaque):
            raise ValueError("not a dictionary")
        if isinstance(target, dict):
            for key, value in zip(pairs[::2], pairs[1::2], strict=True):
                # Others are never hashed: a tuple's hash can take forever.
                target[key if type(key) in (str, int, float, bool) or key is None else Opaque(_kind(key))] = value

    def extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Opaque):
            raise ValueError("append to something that is not a list")

    def add_items(self) -> None:
        self.pop_to_mark()
        if not isinstance(self.stack[-1], Opaque):
            raise ValueError("add to something that is not a set")

    def frozen_set(self) -> None:
        self.pop_to_mark()
        self.stack.append(Opaque("frozenset"))

    def build(self) -> None:
        target, _ = self.pop(2)  # the attributes of a state dict (`_metadata`: versions of its modules) are not weights
        if not isinstance(target, dict | Opaque | TensorClaim):
            raise ValueError("attributes of something that has none")
        self.stack.append(target)

    def integer(self, size: int) -> None:
        self.stack.append(int.from_bytes(self.take(self.number(size)), "little", signed=True))

    def text(self, size: int) -> None:
        self.stack.append(self.take(self.number(size)).decode("utf-8", "surrogatepass"))


def _called(function: Global, arguments: tuple[Any, ...]) -> Any:
    name = function.name
    if name == "collections OrderedDict" and not arguments:
        return {}
    if name == "collections defaultdict" and len(arguments) <= 1:
        return {}
    if name in ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor"):
        return _tensor(arguments)
    if name in ("torch._utils _rebuild_parameter", "torch._utils _rebuild_parameter_with_state"):
        return arguments[0] if isinstance(arguments[0], TensorClaim | Opaque) else function.opaque()
    if name == "torch._tensor _rebuild_from_type_v2" and len(arguments) == 4:
        inner, made, given, _ = arguments
        if isinstance(inner, Global) and isinstance(made, Global) and isinstance(given, tuple):
            # A plain tensor with attributes. Another class may read its numbers otherwise.
            return _called(inner, given) if made.name in _PLAIN_TENSORS and "tensor_v2" in inner.name else made.opaque()
    return function.opaque()


def _tensor(arguments: tuple[Any, ...]) -> Any:
    storage, offset, shape, stride = arguments[:4]
    if isinstance(storage, Opaque):
        return storage
    sizes = isinstance(shape, tuple) and isinstance(stride, tuple) and len(shape) == len(stride) <= MAX_RANK
    if not isinstance(storage, Storage) or not sizes:
        raise ValueError("not a tensor")
    if not all(type(v) is int and 0 <= v < 2**48 for v in (offset, *shape, *stride)):
        raise ValueError("not a tensor")
    if not sensible(shape, storage.itemsize):
        raise ValueError(f"the shape {list(shape)} is of no array")
    lazy = ""
    if len(arguments) > 6 and arguments[6]:
        asked = arguments[6]
        names = [key for key in asked if type(key) is str] if isinstance(asked, dict) else []
        lazy = ", ".join(names)[:80] or "something"
    return TensorClaim(storage, offset, shape, stride, lazy)


def _kind(value: Any) -> str:
    return type(value).__name__


def describe_value(value: Any) -> str:
    """What a value is, for messages: "a tensor", "int", "argparse.Namespace"."""
    if isinstance(value, TensorClaim):
        return "a tensor"
    if isinstance(value, Global):
        value = value.opaque()
    return value.name if isinstance(value, Opaque) else _kind(value)


def _push(make: Callable[[_Scanner], Any]) -> Callable[[_Scanner], None]:
    return lambda s: s.stack.append(make(s))


def _signed(size: int) -> Callable[[_Scanner], None]:
    return _push(lambda s: int.from_bytes(s.take(size), "little", signed=True))


_OPERATIONS: dict[bytes, Callable[[_Scanner], Any]] = {
    pickle.PROTO: lambda s: s.take(1),
    pickle.FRAME: lambda s: s.take(8),
    pickle.MARK: lambda s: s.marks.append(len(s.stack)),
    pickle.EMPTY_DICT: _push(lambda s: {}),
    pickle.EMPTY_LIST: _push(lambda s: []),
    pickle.EMPTY_TUPLE: _push(lambda s: ()),
    pickle.EMPTY_SET: _push(lambda s: Opaque("set")),
    pickle.NONE: _push(lambda s: None),
    pickle.NEWTRUE: _push(lambda s: True),
    pickle.NEWFALSE: _push(lambda s: False),
    pickle.BININT: _signed(4),
    pickle.BININT1: _push(lambda s: s.number(1)),
    pickle.BININT2: _push(lambda s: s.number(2)),
    pickle.LONG1: lambda s: s.integer(1),
    pickle.LONG4: lambda s: s.integer(4),
    pickle.BINFLOAT: _push(lambda s: struct.unpack(">d", s.take(8))[0]),
    pickle.SHORT_BINUNICODE: lambda s: s.text(1),
    pickle.BINUNICODE: lambda s: s.text(4),
    pickle.BINUNICODE8: lambda s: s.text(8),
    pickle.SHORT_BINBYTES: _push(lambda s: s.take(s.number(1))),
    pickle.BINBYTES: _push(lambda s: s.take(s.number(4))),
    pickle.BINBYTES8: _push(lambda s: s.take(s.number(8))),
    pickle.BYTEARRAY8: _push(lambda s: s.take(s.number(8))),
    pickle.BINPUT: lambda s: s.memo.__setitem__(s.number(1), s.stack[-1]),
    pickle.LONG_BINPUT: lambda s: s.memo.__setitem__(s.number(4), s.stack[-1]),
    pickle.MEMOIZE: lambda s: s.memo.__setitem__(len(s.memo), s.stack[-1]),
    pickle.BINGET: _push(lambda s: s.memo[s.number(1)]),
    pickle.LONG_BINGET: _push(lambda s: s.memo[s.number(4)]),
    pickle.GLOBAL: lambda s: s.named(s.line(), s.line()),
    pickle.STACK_GLOBAL: _Scanner.stack_global,
    pickle.REDUCE: _Scanner.call,
    pickle.NEWOBJ: _Scanner.call,
    pickle.NEWOBJ_EX: lambda s: s.call(2),
    pickle.BINPERSID: _Scanner.persistent,
    pickle.BUILD: _Scanner.build,
    pickle.TUPLE: lambda s: s.stack.append(tuple(s.pop_to_mark())),
    pickle.TUPLE1: lambda s: s.stack.append(tuple(s.pop(1))),
    pickle.TUPLE2: lambda s: s.stack.append(tuple(s.pop(2))),
    pickle.TUPLE3: lambda s: s.stack.append(tuple(s.pop(3))),
    pickle.FROZENSET: _Scanner.frozen_set,
    pickle.SETITEM: lambda s: s.set_items(s.pop(2)),
    pickle.SETITEMS: lambda s: s.set_items(s.pop_to_mark()),
    pickle.APPEND: lambda s: s.extend(s.pop(1)),
    pickle.APPENDS: lambda s: s.extend(s.pop_to_mark()),
    pickle.ADDITEMS: _Scanner.add_items,
}
_TABLE: list[Callable[[_Scanner], Any] | None] = [_OPERATIONS.get(bytes([code])) for code in range(256)]
_NAMES = {
    value[0]: name
    for name, value in vars(pickle).items()
    if name.isupper() and type(value) is bytes and len(value) == 1 and value not in _OPERATIONS
}
