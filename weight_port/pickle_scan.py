"""Read what a PyTorch pickle says without executing it.

`pickletools.genops` only splits the byte stream into instructions. This interprets the two dozen that `torch.save`
writes, over plain data: a call is looked up in a table of three names, and everything else is refused with its name
before torch opens the file. It finds out which tensors the file claims to hold, so that every claim can be checked
against the archive's real sizes.
"""

import math
import pickletools
import warnings
from dataclasses import dataclass
from typing import Any

from ntt_jax.errors import InputError

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
_CALLS = ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "collections OrderedDict")


@dataclass(frozen=True)
class Global:
    name: str  # "module attribute"


@dataclass(frozen=True)
class Storage:
    dtype: str
    itemsize: int
    key: str  # name of the record that holds the bytes
    numel: int


@dataclass(frozen=True, eq=False)
class TensorClaim:
    """A tensor as the pickle describes it: a strided view into a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.storage.itemsize


class _Mark:
    pass


def scan(data: bytes, where: str) -> Any:
    """The object a pickle describes, as dicts, lists, tuples, numbers, strings and `TensorClaim`s.

    Raises:
        InputError: the pickle is damaged, or would call or load anything but tensors.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # pickletools warns about odd escapes in strings: damage, like all the rest
            return _Scanner(where).run(data)
    except InputError:
        raise
    except Exception as e:  # pickletools and the stack below raise many types on damaged input, all meaning the same
        raise InputError(f"{where}: damaged pickle ({type(e).__name__})") from None


class _Scanner:
    def __init__(self, where: str):
        self.where = where
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                (root,) = self.stack
                return root
            handler = _HANDLERS.get(opcode.name)
            if handler is None:
                raise InputError(f"{self.where}: pickle instruction {opcode.name}, which torch.save never writes")
            handler(self, argument)
        raise ValueError("no STOP")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while not isinstance(top := self.stack.pop(), _Mark):
            items.append(top)
        return items[::-1]

    def pop(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise ValueError("stack underflow")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def find(self, name: str) -> None:
        module, _, attribute = name.partition(" ")
        if name not in _CALLS and not (module == "torch" and attribute in STORAGE_TYPES):
            raise InputError(
                f"{self.where}: the pickle asks for {module}.{attribute}; only tensors are read, nothing was executed"
            )
        self.push(Global(name))

    def call(self, _: Any) -> None:
        function, arguments = self.pop(2)
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise ValueError("a call of something that is not a function")
        if function.name == "collections OrderedDict" and arguments == ():
            self.push({})
        elif function.name == "torch._utils _rebuild_tensor_v2":
            self.push(self.tensor(arguments))
        elif function.name == "torch._utils _rebuild_parameter" and isinstance(arguments[0], TensorClaim):
            self.push(arguments[0])
        else:
            raise InputError(f"{self.where}: the pickle calls {function.name.replace(' ', '.')} with odd arguments")

    def tensor(self, arguments: tuple[Any, ...]) -> TensorClaim:
        storage, offset, shape, stride = arguments[:4]
        sizes = isinstance(shape, tuple) and isinstance(stride, tuple) and len(shape) == len(stride) <= 8
        if not isinstance(storage, Storage) or not sizes:
            raise ValueError("not a tensor")
        if not all(type(v) is int and 0 <= v < 2**48 for v in (offset, *shape, *stride)):
            raise ValueError("not a tensor")
        return TensorClaim(storage, offset, shape, stride)

    def persistent(self, _: Any) -> None:
        kind, storage_type, key, _, numel = self.stack.pop()
        module, _, attribute = storage_type.name.partition(" ")
        if kind != "storage" or module != "torch" or type(key) is not str or type(numel) is not int:
            raise ValueError("not a storage")
        self.push(Storage(*STORAGE_TYPES[attribute], key, numel))

    def set_items(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if type(key) not in (str, int):  # also keeps nested tuples, whose hash can take forever, out of the keys
                raise InputError(f"{self.where}: a dictionary key is {type(key).__name__}, expected a string")
            target[key] = value

    def extend(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError("append to something that is not a list")
        self.stack[-1].extend(values)

    def build(self, _: Any) -> None:
        target, _ = self.pop(2)  # the attributes of a state dict (`_metadata`: versions of its modules) are not weights
        if not isinstance(target, dict):
            raise InputError(f"{self.where}: the pickle sets attributes of {type(target).__name__}")
        self.push(target)

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]


def _constant(value: Any) -> Any:
    return lambda scanner, _: scanner.push(value)


def _argument(scanner: _Scanner, argument: Any) -> None:
    scanner.push(argument)


_HANDLERS: dict[str, Any] = {
    "PROTO": lambda scanner, _: None,
    "MARK": lambda scanner, _: scanner.push(_Mark()),
    "EMPTY_DICT": lambda scanner, _: scanner.push({}),
    "EMPTY_LIST": lambda scanner, _: scanner.push([]),
    "EMPTY_TUPLE": _constant(()),
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    **dict.fromkeys(("BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), _argument),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Scanner.put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda scanner, index: scanner.push(scanner.memo[index])),
    "GLOBAL": _Scanner.find,
    "REDUCE": _Scanner.call,
    "BINPERSID": _Scanner.persistent,
    "BUILD": _Scanner.build,
    "TUPLE": lambda scanner, _: scanner.push(tuple(scanner.pop_to_mark())),
    "TUPLE1": lambda scanner, _: scanner.push(tuple(scanner.pop(1))),
    "TUPLE2": lambda scanner, _: scanner.push(tuple(scanner.pop(2))),
    "TUPLE3": lambda scanner, _: scanner.push(tuple(scanner.pop(3))),
    "SETITEM": lambda scanner, _: scanner.set_items(scanner.pop(2)),
    "SETITEMS": lambda scanner, _: scanner.set_items(scanner.pop_to_mark()),
    "APPEND": lambda scanner, _: scanner.extend(scanner.pop(1)),
    "APPENDS": lambda scanner, _: scanner.extend(scanner.pop_to_mark()),
}
